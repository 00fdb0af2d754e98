"""Pretrained pipelines from the command line: run, report, resume, weights for diffusers, classes, and mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from girsanov.cli import main
from tests.pipelines import FAMILIES, LINES, autoencoder, folder_of, sit_checkpoint

pytest.importorskip("peft")
pytest.importorskip("diffusers")

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["samples=4", "batch=4", "steps=2", "kl_samples=2", "pictured=2", "groups=2", "group_size=2", "lora=2"]
SMALL += ["method.grid.n=3", "pipeline.height=16", "pipeline.width=24", "evaluate_every=2", "--device", "cpu"]
REWARD = """
def named(images, prompts):
    assert [p["text"][:1] for p in prompts] == [p["first"] for p in prompts]
    return images[:, 0].mean((1, 2)) * float(prompts[0]["weight"])
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a reward and prompts that carry metadata."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIRSANOV_CACHE", str(tmp_path / "cache"))
    (tmp_path / "r.py").write_text(REWARD)
    rows = [{"prompt": t, "first": t[0], "weight": 2.0} for t in LINES[:4]]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.getbasetemp()


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run, times left out."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "speed/"))} for row in found]


def test_a_pipeline_is_tuned_resumed_and_loaded(root: Any, folder: Path, capsys: Any) -> None:
    """SD1.5: two iterations at once and one by one give the same numbers to the bit; diffusers loads the weights."""
    model = str(folder_of("sd15", root))
    command = ["run", "text-to-image", f"model={model}", "prompts=p.jsonl", "reward=r.py:named", *SMALL]
    assert main([*command, "train.iterations=2", "--out", "whole"]) == 0
    assert main([*command, "train.iterations=1", "--out", "parts"]) == 0
    assert main(["run", "text-to-image", "--out", "parts", "--resume", "train.iterations=2", "--device", "cpu"]) == 0
    whole, parts = lines(folder / "whole"), lines(folder / "parts")
    assert len(whole) == 4  # two iterations, an evaluation before and one after
    assert [row for row in whole if row["iteration"] == 2] == [row for row in parts if row["iteration"] == 2]
    assert all(row["ratio_max"] == row["ratio_min"] == 1.0 for row in whole if "ratio_max" in row)
    report = (folder / "whole" / "report.html").read_text()
    assert "StableDiffusionPipeline" in report and report.count("data:image/png;base64,") >= 2
    assert (folder / "whole" / "samples" / "after.png").stat().st_size > 1000
    card = (folder / "whole" / "README.md").read_text()
    assert "pipe.load_lora_weights('whole/weights')" in card
    import diffusers

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(model)
    pipe.load_lora_weights("whole/weights")
    saved = {k: v for k, v in pipe.unet.state_dict().items() if "lora_B" in k}
    assert saved and any(v.abs().max() > 0 for v in saved.values())
    files = list((folder / "cache" / "prompts").rglob("*.safetensors"))
    assert len(files) == 5  # four prompts and the negative one
    assert main(["sample", "whole", "-n", "2", "--strength", "0.5", "--out", "drawn", "--device", "cpu"]) == 0
    assert sorted(p.name for p in (folder / "drawn").iterdir()) == ["0000.png", "0001.png", "grid.png", "prompts.txt"]
    capsys.readouterr()


@pytest.mark.slow
def test_published_adapters_are_gone_on_with(root: Any, folder: Path, capsys: Any) -> None:
    """FLUX.2: the first evaluation of a run from adapters is the last one of the run that made them, but for the KL."""
    model = str(folder_of("flux2-klein", root))
    command = ["run", "text-to-image", f"model={model}", "prompts=p.jsonl", "reward=r.py:named", *SMALL]
    command += ["pipeline.tokens=40", "train.iterations=2", "train.lr=0.05"]
    assert main([*command, "--out", "first"]) == 0
    assert main([*command, "lora_from=first/weights", "--out", "second"]) == 0
    last = [r for r in lines(folder / "first") if r.get("kind") == "evaluation"][-1]
    begun = [r for r in lines(folder / "second") if r.get("kind") == "evaluation"][0]
    start = [r for r in lines(folder / "first") if r.get("kind") == "evaluation"][0]
    assert begun["reward"] == pytest.approx(last["reward"], rel=1e-5) and begun["reward"] != start["reward"]
    capsys.readouterr()


def test_a_published_sit_is_tuned_on_its_classes(root: Any, folder: Path, capsys: Any) -> None:
    """ODE adjoint matching raises the reward of the class-conditional network: 24 iterations, held to 3 errors."""
    autoencoder(scaling_factor=0.18215).save_pretrained("vae")
    sit_checkpoint(folder / "SiT.pt")
    (folder / "red.py").write_text("def red(images, prompts):\n    return images[:, 0].mean((1, 2))\n")
    small = [s for s in SMALL if not s.startswith(("pipeline", "samples"))]
    command = ["run", "class-to-image", "model=SiT.pt,vae", "reward=red.py:red", "--method", "ode-am", *small]
    command += ["method.cost.lam=0.0003", "train.iterations=24", "train.lr=0.02", "classes=4", "samples=16"]
    assert main([*command, "lora=8", "evaluate_every=24", "--out", "sit"]) == 0
    first, last = [r for r in lines(folder / "sit") if r.get("kind") == "evaluation"]
    assert last["reward"] - first["reward"] > 3 * (first["reward_se"] ** 2 + last["reward_se"] ** 2) ** 0.5
    assert (folder / "sit" / "weights" / "adapter_config.json").is_file()
    capsys.readouterr()


MISTAKES = {
    "no model": ([], "model is missing: give the folder or the name of a pipeline with model=..."),
    "no prompts": (["model={sd15}"], "prompts is missing: give a file of prompts with prompts=..."),
    "no pipeline": (["model=cache", "prompts=p.jsonl"], "cache is no pipeline, it has no model_index.json"),
    "unknown family": (["model=other", "prompts=p.jsonl"], "is a KandinskyPipeline, a family that is not known here"),
    "damaged": (["model=damaged", "prompts=p.jsonl"], "its model_index.json names no class"),
    "no such name": (["model=nobody/nothing", "prompts=p.jsonl"], "there is no folder nobody/nothing"),
    "texts as classes": (["model={dit}", "prompts=p.jsonl"], "draws classes, not texts: use girsanov run class-to"),
    "wrong size": (["model={sd15}", "prompts=p.jsonl", "pipeline.height=17"], "a height of 17 pixels does not fit"),
    "no such setting": (
        ["model={sd15}", "prompts=p.jsonl", "pipeline.frames=5"],
        "pipeline.frames means nothing to Stable",
    ),
    "no column": (["model={sd15}", "prompts=p.jsonl", "prompts_column=words"], "has no column 'words'"),
    "long prompt": (["model={sd15}", "prompts=long.txt"], "tokens and StableDiffusionPipeline reads 77: shorten"),
    "no pictures": (["model={sd15}", "prompts=p.jsonl", "prompts_image=first"], "takes no pictures to edit"),
    "other adapters": (["model={sd15}", "prompts=p.jsonl", "lora_from=cache"], "holds no low-rank adapters for"),
    "no such layer": (["model={sd15}", "prompts=p.jsonl", "lora_targets=[to_x]"], "no linear layer is called to_x"),
    "wrong sampler": (
        ["model={sd15}", "prompts=p.jsonl", "--method", "flow-grpo", "train.iterations=1"],
        "FlowSDE is defined for RectifiedFlow, not for VPTable",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_a_sentence(mistake: str, root: Any, folder: Path, capsys: Any) -> None:
    (folder / "cache").mkdir()
    for name, text in (("other", '{"_class_name": "KandinskyPipeline"}'), ("damaged", "[]")):
        (folder / name).mkdir()
        (folder / name / "model_index.json").write_text(text)
    (folder / "long.txt").write_text("a fox " * 60)
    settings, sentence = MISTAKES[mistake]
    folders = {name: folder_of(name, root) for name in ("sd15", "dit")}
    sized = "pipeline" in " ".join(settings) or "{dit}" in " ".join(settings)
    small = [s for s in SMALL if not (sized and s.startswith("pipeline"))]
    assert main(["run", "text-to-image", *small, *(s.format(**folders) for s in settings), "--out", "run"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and sentence in error
    if mistake != "wrong sampler":
        assert not (folder / "run").exists(), "nothing was trained: the folder is free again"


def test_a_missing_extra_is_named(folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sd").mkdir()
    (folder / "sd" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert main(["run", "text-to-image", "model=sd", "prompts=p.jsonl", "--device", "cpu"]) == 2
    assert "pip install 'girsanov[diffusers]'" in capsys.readouterr().err


def command_of(name: str, root: Any) -> list[str]:
    """How a family is tuned from the command line; SiT by its classes."""
    if name == "sit":
        autoencoder(scaling_factor=0.18215).save_pretrained("vae")
        sit_checkpoint(Path("SiT.pt"))
        Path("any.py").write_text("def any(images, prompts):\n    return images.flatten(1).square().mean(1)\n")
        small = [s for s in SMALL if not s.startswith("pipeline")]
        return ["run", "class-to-image", "model=SiT.pt,vae", "reward=any.py:any", "classes=4", *small]
    tokens = [] if name == "sd15" else ["pipeline.tokens=40"]
    model = f"model={folder_of(name, root)}"
    return ["run", "text-to-image", model, "prompts=p.jsonl", "reward=r.py:named", *SMALL, *tokens]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sit", "sd3", "flux2-klein"])
@pytest.mark.parametrize("method", ["ode-am", "nft"])
def test_a_resumed_run_is_the_same(name: str, method: str, root: Any, folder: Path, capsys: Any) -> None:
    """To the bit, with averaged weights and moving copies; ODE adjoint matching and DiffusionNFT."""
    command = [*command_of(name, root), "--method", method, "train.ema=0.9"]
    assert main([*command, "train.iterations=2", "--out", "whole"]) == 0
    assert main([*command, "train.iterations=1", "--out", "parts"]) == 0
    assert main(["run", command[1], "--out", "parts", "--resume", "train.iterations=2", "--device", "cpu"]) == 0
    whole, parts = lines(folder / "whole"), lines(folder / "parts")
    assert [row for row in whole if row["iteration"] == 2] == [row for row in parts if row["iteration"] == 2]
    capsys.readouterr()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sit", "sd3", "flux2-klein"])
def test_two_processes_give_the_curve_of_one(name: str, root: Any, folder: Path) -> None:
    """With gloo: 1e-5 relative in the loss, its gradient and the reward, 1e-3 of the way in weights, 1 % in the KL.

    A batch of two and one of four round differently (1e-6). The path KL is the square of a difference of predictions
    that two iterations have moved by 1e-4 of their norm, so rounding counts ten thousand times as much in it (LOG.md).
    """
    command = [*command_of(name, root), "train.iterations=2"]
    assert main([*command, "--out", "one"]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "girsanov.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launch, *command, "--out", "two"], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = lines(folder / "one"), lines(folder / "two")
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        for key in ("reward", "loss", "grad_norm", "kl", "diversity"):
            if key in a:
                assert b[key] == pytest.approx(a[key], rel=1e-2 if key == "kl" else 1e-5, abs=1e-7), key
    from safetensors.torch import load_file

    paths = [folder / run / "checkpoints" / "0000002" / "current.safetensors" for run in ("one", "two")]
    first, second = (load_file(path) for path in paths)
    assert first.keys() == second.keys()
    moved = torch.cat([w.flatten() for k, w in first.items() if "lora_B" in k])  # these began at zero
    apart = torch.cat([(second[k] - w).flatten() for k, w in first.items() if "lora_B" in k])
    assert 0 < moved.norm() and apart.norm() < 1e-3 * moved.norm()


@pytest.mark.slow
def test_pictures_of_the_prompts_are_edited(root: Any, folder: Path, capsys: Any) -> None:
    """FLUX.2 with a column of pictures: they reach the network in training and evaluation."""
    from PIL import Image

    assert "flux2-klein" in FAMILIES
    rows = []
    for i, text in enumerate(LINES[:4]):
        Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 5 + 20 * i).save(f"{i}.png")
        rows.append({"prompt": text, "first": text[0], "weight": 1.0, "picture": f"{i}.png"})
    Path("edit.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    model = str(folder_of("flux2-klein", root))
    command = ["run", "text-to-image", f"model={model}", "reward=r.py:named", *SMALL, "train.iterations=1"]
    command += ["pipeline.tokens=40", "prompts=edit.jsonl"]
    assert main([*command, "--out", "plain"]) == 0
    assert main([*command, "prompts_image=picture", "--out", "edit"]) == 0
    plain, edited = lines(folder / "plain")[0]["reward"], lines(folder / "edit")[0]["reward"]
    assert plain != edited  # the same noise: nothing else differs
    capsys.readouterr()
