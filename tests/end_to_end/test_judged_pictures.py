"""A user's own judged pictures from the command line: pairs, labels and rankings to a tuned pipeline and its report."""

import json
from pathlib import Path
from typing import Any

import pytest

from girsanov.cli import main
from tests.pipelines import LINES, autoencoder, folder_of, sit_checkpoint

pytest.importorskip("peft")
pytest.importorskip("diffusers")
Image = pytest.importorskip("PIL.Image")

SMALL = ["samples=2", "batch=4", "steps=2", "kl_samples=0", "pictured=2", "groups=2", "group_size=2", "lora=2"]
SIZE = ["pipeline.height=16", "pipeline.width=24"]
LEARN = ["train.iterations=30", "train.lr=0.01", "lora=8"]
QUIET = ["evaluate_every=100", "checkpoint_every=100", "--device", "cpu"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with pairs of flat pictures: red ones are preferred to blue ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIRSANOV_CACHE", str(tmp_path / "cache"))
    rows = []
    for i in range(8):
        for side, colour in (("w", (220, 30 + 9 * i, 20)), ("l", (20, 30 + 9 * i, 220))):
            Image.new("RGB", (40, 28), colour).save(f"{i}{side}.png")
        sides = {"chosen": {"image": f"{i}w.png"}, "rejected": {"image": f"{i}l.png"}}
        rows.append({"prompt": LINES[i % 4], **sides, "split": "test" if i % 4 == 3 else "train"})
    rows[2]["rejected"] = {"image": "gone.png"}
    Path("pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.getbasetemp()


def evaluations(run: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row.get("kind") == "evaluation"]


def test_diffusion_dpo_learns_what_the_pairs_say(root: Any, folder: Path, capsys: Any) -> None:
    """SD1.5, 5 usable pairs to train on, 30 iterations, seed 0: both held-out pairs end in order, from a tie (the gaps
    of the implicit reward were above .04 for six draws of the weights). The bad row is told with its number; latents
    are kept on disk, and a second run encodes nothing."""
    model = str(folder_of("sd15", root))
    command = ["run", "text-to-image", "--method", "diffusion-dpo", f"model={model}", "data=pairs.jsonl", *SMALL, *SIZE]
    assert main([*command, *QUIET, *LEARN, "--out", "one"]) == 0
    assert "left out: pairs.jsonl, row 3: there is no picture gone.png" in capsys.readouterr().out
    before, after = evaluations("one")
    assert before["reward"] == 0.5 and after["reward"] == 1.0 and "measured" in after
    card = (Path("one") / "README.md").read_text()
    assert "on 5 pairs of pairs.jsonl, judged on 2 of other prompts" in card and "Held-out pairs in order" in card
    assert "evaluated on 1 of held-out prompts" in card
    states = sorted(Path("cache/latents").rglob("*.safetensors"))
    assert len(states) == 15  # the winner of the row that was left out is one of them
    times = [s.stat().st_mtime_ns for s in states]
    assert main([*command, *QUIET, "train.iterations=1", "train.micro_batch=2", "--out", "two"]) == 0
    assert [s.stat().st_mtime_ns for s in sorted(Path("cache/latents").rglob("*.safetensors"))] == times
    capsys.readouterr()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["diffusion-kto", "rank-dpo", "dspo", "diffusion-sdpo", "mapo"])
def test_every_offline_method_takes_them(method: str, root: Any, folder: Path, capsys: Any) -> None:
    """SD3, one iteration: labels (good if ever better), rankings and pairs of one file."""
    model = str(folder_of("sd3", root))
    command = ["run", "text-to-image", "--method", method, f"model={model}", "data=pairs.jsonl", *SMALL, *SIZE, *QUIET]
    assert main([*command, "train.iterations=1", "--out", "run"]) == 0
    kind = {"diffusion-kto": "11 labels", "rank-dpo": "5 lists"}.get(method, "5 pairs")
    assert f"tuned by {method} on {kind} of pairs.jsonl" in (Path("run") / "README.md").read_text()
    capsys.readouterr()


@pytest.mark.slow
def test_prompts_of_classes_are_their_numbers(root: Any, folder: Path, capsys: Any) -> None:
    autoencoder(scaling_factor=0.18215).save_pretrained("vae")
    sit_checkpoint(folder / "SiT.pt")
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    for name, prompt in (("classes", "3"), ("words", "a fox")):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(r | {"prompt": prompt}) + "\n" for r in rows))
    command = ["run", "class-to-image", "--method", "diffusion-dpo", "model=SiT.pt,vae", *SMALL, *QUIET, "classes=4"]
    assert main([*command, "data=classes.jsonl", "train.iterations=1", "--out", "run"]) == 0
    assert main([*command, "data=words.jsonl", "train.iterations=1", "--out", "none"]) == 2
    assert "the prompt 'a fox' is no class: prompts of judged pictures are numbers" in capsys.readouterr().err


MISTAKES = {
    "no file": (["data=none.jsonl"], "there is no file none.jsonl"),
    "all held out": (["data=pairs.jsonl", "held_out=0.999999"], "all of its prompts are held out, lower held_out"),
    "own samples": (
        ["data=pairs.jsonl", "--method", "d3po", "method.grid.n=3"],
        "d3po learns from samples of its own: leave data out, or take a method that learns from judged pictures",
    ),
    "no pictures": (
        ["data=texts.jsonl"],
        "texts.jsonl has no row to learn from: texts.jsonl, row 1: a pipeline",
    ),
    "nothing there": (
        ["data=gone.jsonl"],
        "gone.jsonl has no pairs to train on: gone.jsonl, row 1: there is no",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_a_sentence(mistake: str, root: Any, folder: Path, capsys: Any) -> None:
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    Path("gone.jsonl").write_text(json.dumps(rows[2]) + "\n")
    Path("texts.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    Path("pairs.jsonl").write_text("".join(json.dumps(r | {"split": "train"}) + "\n" for r in rows))
    wanted, sentence = MISTAKES[mistake]
    command = ["run", "text-to-image", "--method", "diffusion-dpo", f"model={folder_of('sd15', root)}", *SMALL, *SIZE]
    assert main([*command, *wanted, "train.iterations=1", *QUIET, "--out", "run"]) == 2
    assert sentence in capsys.readouterr().err
