"""The command line as a user meets it, on the mixture recipe: a run, what is made of it, and every mistake."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from girsanov.checkpoint import checkpoints, verify
from girsanov.cli import main
from girsanov.folder import RunFolder
from girsanov.launch import Launch, device_of, execute
from girsanov.problems import QuadraticReward
from girsanov.recipes.mixture import MixtureRecipe
from girsanov.train import Run

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "batch=32",
    "width=16",
    "samples=200",
    "grid.n=8",
    "train.iterations=6",
    "evaluate_every=3",
    "checkpoint_every=2",
]
FAST = [*SMALL, "method.grid.n=5", "train.lr=1e-2"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "tuned"
    assert main(["run", "mixture", "--out", str(out), "--method", "ode-am", *FAST]) == 0
    return out


def said(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


class Links(HTMLParser):
    """Everything that a page loads or points to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]


def page(path: Path) -> tuple[str, Links]:
    text = path.read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    assert "script" not in links.tags and "link" not in links.tags
    assert all(link.startswith("data:image/png;base64,") for link in links.found)
    assert "url(" not in text and "@import" not in text and "http" not in re.sub(r'"data:[^"]*"', "", text)
    return text, links


def test_a_run_leaves_everything_behind(tuned: Path) -> None:
    names = {p.name for p in tuned.iterdir()}
    assert names >= {
        "run.json",
        "config.yaml",
        "versions.json",
        "about.json",
        "metrics.jsonl",
        "checkpoints",
        "samples",
        "README.md",
        "report.html",
    }
    folder = RunFolder.open(tuned)
    assert [r["iteration"] for r in folder.records()] == [1, 2, 3, 4, 5, 6]
    evaluations = folder.records("evaluation")
    assert [r["iteration"] for r in evaluations] == [0, 3, 6]
    assert evaluations[-1]["reward"] > evaluations[0]["reward"] + 3 * evaluations[0]["reward_se"]
    assert [int(p.name) for p in checkpoints(folder.checkpoints)][-1] == 6
    assert (folder.samples / "before.png").read_bytes()[:4] == b"\x89PNG"
    versions = json.loads((tuned / "versions.json").read_text())
    assert versions["packages"]["torch"] == torch.__version__.split("+")[0] or versions["packages"]["torch"]
    assert folder.facts["command"].startswith("girsanov run mixture --out")


def test_the_report_is_one_file_that_says_what_happened(tuned: Path) -> None:
    text, links = page(tuned / "report.html")
    assert "It worked." in text and "reward rose from" in text.lower()
    assert len(links.found) == 2 and base64.b64decode(links.found[0].partition(",")[2])[:4] == b"\x89PNG"
    assert text.count("<svg") == 6
    for words in (
        "Divergence from the exact law",
        "collect",
        "girsanov run mixture --out",
        "kind: ode-am",
        "None rang",
    ):
        assert words in text
    card = (tuned / "README.md").read_text()
    assert card.startswith("# tuned\n") and "| Reward |" in card and "girsanov run mixture --out" in card


def test_the_command_in_the_report_repeats_the_run(tuned: Path, tmp_path: Path) -> None:
    command = RunFolder.open(tuned).facts["command"].replace(str(tuned), str(tmp_path / "again")).split()
    assert main(command[1:]) == 0
    times = re.compile(r', "(time|speed)/[a-z_]+": [0-9.e-]+')
    first, second = ((p / "metrics.jsonl").read_text() for p in (tuned, tmp_path / "again"))
    assert times.sub("", first) == times.sub("", second)


def test_samples_follow_seed_and_strength(tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arrays = {}
    for name, options in {"a": [], "b": [], "seed": ["--seed", "1"], "ref": ["--strength", "0"]}.items():
        out = tmp_path / name
        assert (
            said(capsys, "sample", str(tuned), "-n", "50", "--out", str(out), *options)[1] == f"50 samples in {out}\n"
        )
        arrays[name] = np.load(out / "samples.npy")
        assert (out / "grid.png").exists()
    assert arrays["a"].shape == (50, 2) and (arrays["a"] == arrays["b"]).all()
    assert not np.allclose(arrays["a"], arrays["seed"]) and not np.allclose(arrays["a"], arrays["ref"])
    launch = Launch.existing(tuned)
    parts = launch.recipe.build(launch.config, torch.device("cpu"))
    reference = parts.sample(parts.run.reference(), 50, 0).x.numpy()
    np.testing.assert_allclose(arrays["ref"], reference, atol=1e-6)


def test_evaluating_a_run_gives_the_numbers_of_its_last_evaluation(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    code, out, _ = said(capsys, "evaluate", str(tuned), "--json", str(tmp_path / "e.json"))
    last = RunFolder.open(tuned).records("evaluation")[-1]
    values = json.loads((tmp_path / "e.json").read_text())
    assert code == 0 and all(values[key] == last[key] for key in values)
    assert out.splitlines()[0] == f"{'Reward':<36} {last['reward']:10.4f}  ± {1.96 * last['reward_se']:.4f}"


def test_resuming_goes_on_to_the_same_end(tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "longer"
    settings = [s for s in FAST if not s.startswith("train.iterations")]
    assert main(["run", "mixture", "--out", str(out), "--method", "ode-am", *settings, "train.iterations=4"]) == 0
    assert main(["run", "mixture", "--out", str(out), "--resume", "train.iterations=6"]) == 0
    assert [r["iteration"] for r in RunFolder.open(out).records()] == [1, 2, 3, 4, 5, 6]
    assert "iterations: 6" in (out / "config.yaml").read_text()


def test_repeated_runs_are_reported_with_intervals(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "many"
    code, text, _ = said(capsys, "run", "mixture", "--out", str(out), "--seeds", "2", "--method", "ode-am", *FAST)
    assert code == 0 and "±" in text.splitlines()[-2] and text.splitlines()[-1] == f"report: {out / 'report.html'}"
    seeds = [RunFolder.open(out / f"seed-{i}").records("evaluation")[-1]["reward"] for i in (0, 1)]
    assert seeds[0] != seeds[1]
    report, _ = page(out / "report.html")
    half = 12.7062 * abs(seeds[0] - seeds[1]) / 2  # Student's t with one degree of freedom, std / sqrt(2)
    found = re.search(r'<td class="n">2</td><td class="n">(-?[0-9.]+) ± ([0-9.]+)</td>', report)
    assert found is not None
    assert float(found[1]) == pytest.approx(sum(seeds) / 2, abs=half / 10)
    assert float(found[2]) == pytest.approx(half, rel=0.05)


def test_repeated_runs_go_on_where_they_stopped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "many"
    command = ["run", "mixture", "--out", str(out), "--method", "ode-am", *FAST]
    assert main([*command, "--seeds", "1"]) == 0
    before = (out / "seed-0" / "metrics.jsonl").read_bytes()
    code, _, err = said(capsys, *command, "--seeds", "2")
    assert (code, err.splitlines()[-1]) == (
        2,
        f"error: {out} is not empty: go on with the runs in it with --resume, or give another --out",
    )
    code, text, _ = said(capsys, *command, "--seeds", "2", "--resume")
    assert code == 0 and text.splitlines()[0] == "seed 1"
    assert (out / "seed-0" / "metrics.jsonl").read_bytes() == before
    assert json.loads((out / "seed-1" / "about.json").read_text())["seed"] == 1


def test_comparing_runs(tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "compare.html"
    numbers = tmp_path / "compare.json"
    code, text, _ = said(capsys, "compare", str(tuned), str(tuned), "--out", str(out), "--json", str(numbers))
    rows = text.splitlines()
    assert code == 0 and rows[0].startswith("run") and rows[1].startswith("tuned  ode-am") and rows[1] == rows[2]
    html, links = page(out)
    assert "2 runs side by side" in html and len(links.found) == 3
    first, second = json.loads(numbers.read_text())["runs"]
    last = RunFolder.open(tuned).records("evaluation")[-1]
    assert first == second and (first["method"], first["iterations"]) == ("ode-am", 6)
    assert first["metrics"]["reward"]["after"] == [last["reward"]]
    assert first["metrics"]["reward"]["after_text"] in rows[1]


def test_listing(tuned: Path, capsys: pytest.CaptureFixture) -> None:
    code, text, _ = said(capsys, "list", str(tuned.parent))
    assert code == 0
    for words in ("mixture", "ode-am", "gddim", "bold", f"{tuned}", "6 iterations"):
        assert words in text


def test_an_interrupt_finishes_the_iteration_saves_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    build = MixtureRecipe.build

    def pressed(self: MixtureRecipe, config: object, device: object, accelerator: object = None) -> object:
        parts = build(self, config, device, accelerator)
        after_update, count = parts.run.method.after_update, [0]

        def press(*arguments: object) -> None:
            after_update(*arguments)
            count[0] += 1
            if count[0] == 3:  # within the third iteration
                os.kill(os.getpid(), signal.SIGINT)

        object.__setattr__(parts.run.method, "after_update", press)
        return parts

    monkeypatch.setattr(MixtureRecipe, "build", pressed)
    code, text, _ = said(capsys, "run", "mixture", "--out", str(out), "--method", "ode-am", *FAST)
    monkeypatch.setattr(MixtureRecipe, "build", build)
    assert code == 130
    assert text.splitlines()[-2:] == [
        "stopped after iteration 3 of 6, everything is saved; go on with",
        f"  girsanov run mixture --out {out} --resume",
    ]
    assert [int(p.name) for p in checkpoints(out / "checkpoints")][-1] == 3
    assert (out / "report.html").exists()
    assert said(capsys, "run", "mixture", "--out", str(out), "--resume")[0] == 0
    assert [r["iteration"] for r in RunFolder.open(out).records()] == [1, 2, 3, 4, 5, 6]


def test_a_second_interrupt_stops_at_once_and_keeps_what_was_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, interrupts: None
) -> None:
    out, build = tmp_path / "run", MixtureRecipe.build

    def pressed(self: MixtureRecipe, config: object, device: object, accelerator: object = None) -> object:
        parts = build(self, config, device, accelerator)

        def press(*_: object) -> None:
            if parts.run.done == 3:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

        object.__setattr__(parts.run.method, "after_update", press)
        return parts

    monkeypatch.setattr(MixtureRecipe, "build", pressed)
    code, _, err = said(capsys, "run", "mixture", "--out", str(out), "--method", "ode-am", *FAST)
    assert code == 130 and err.splitlines()[-1] == "stopped"
    assert [int(p.name) for p in checkpoints(out / "checkpoints")] == [2, 3]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_unexpected_error_leaves_its_traceback_in_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def broken(*_: object) -> object:
        raise KeyError("surprise")

    monkeypatch.setattr(MixtureRecipe, "build", broken)
    code, _, err = said(capsys, "run", "mixture", "--out", str(out), *FAST)
    assert code == 1
    assert err == f"error: unexpected KeyError; the traceback is in {out / 'traceback.txt'}\n"
    assert "KeyError: 'surprise'" in (out / "traceback.txt").read_text()


def mistakes(tuned: Path, tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    used = ["run", "mixture", "--out", str(tuned)]
    fresh = ["run", "mixture", "--out", str(tmp_path / "x")]
    none = tmp_path / "none"
    return {
        "used": (used, f"{tuned} already holds a run: continue it with --resume, or give another --out"),
        "recipe": (["run", "mixtur"], "'mixtur' is no recipe: did you mean mixture?"),
        "method": ([*fresh, "--method", "ode-ma"], "method 'ode-ma' is no method: did you mean ode-am?"),
        "key": ([*fresh, "train.lrr=1"], "train.lrr is no setting: did you mean lr?"),
        "value": ([*fresh, "train.lr=-1"], "train.lr must be greater than 0, not -1"),
        "not-finite": ([*fresh, "slope=[.nan, 0]"], "slope.0 must be a finite number, not nan"),
        "word": ([*fresh, "quickly"], "'quickly' is no setting: write key=value or key.sub=value, without spaces"),
        "config": (
            [*fresh, "--config", str(none)],
            f"there is no file {none}: give the path of a YAML file of settings",
        ),
        "device": (
            [*fresh, "--device", "abacus"],
            "there is no device 'abacus' here: use --device cpu, cuda where there is a GPU, or mps on a Mac",
        ),
        "resume": (["run", "mixture", "--resume"], "--resume needs the folder of the run: give it with --out"),
        "resume-none": (
            ["run", "mixture", "--resume", "--out", str(none)],
            f"{none} holds no run: give the folder of a run (girsanov list shows them)",
        ),
        "resume-other": (
            ["run", "digits", "--resume", "--out", str(tuned)],
            f"{tuned} is a run of mixture: girsanov run mixture --resume",
        ),
        "seeds": ([*fresh, "--seeds", "0"], "--seeds 0 makes no run: give 1 or more"),
        "sample": (
            ["sample", str(none)],
            f"{none} holds no run: give the folder of a run (girsanov list shows them)",
        ),
        "sample-n": (["sample", str(tuned), "-n", "0"], "-n 0 draws nothing: give 1 or more"),
        "checkpoint": (
            ["sample", str(tuned), "--checkpoint", "5"],
            f"{tuned} keeps no checkpoint of iteration 5: it has 4, 6",
        ),
        "evaluate": (
            ["evaluate", str(none)],
            f"there is no folder {none}: give the folder of a run, or one of pictures",
        ),
        "pictures": (
            ["evaluate", str(tuned / "samples"), "--recipe", "mixture"],
            "the recipe mixture cannot evaluate pictures: give the folder of a run",
        ),
    }


def test_every_mistake_is_one_sentence(tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = {p: p.read_bytes() for p in tuned.rglob("*") if p.is_file()}
    for name, (arguments, sentence) in mistakes(tuned, tmp_path).items():
        code, _, err = said(capsys, *arguments)
        assert (code, err) == (2, f"error: {sentence}\n"), name
    assert {p: p.read_bytes() for p in tuned.rglob("*") if p.is_file()} == before
    assert not (tmp_path / "x").exists()


def test_parts_that_do_not_fit_are_refused_and_the_folder_stays_free(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["run", "mixture", "--out", str(tmp_path / "x"), *SMALL, "method.grid.n=5"]
    code, _, err = said(capsys, *command, "--method", "ode-am", "method.sampler=dpm-solver++2m")
    assert code == 2
    assert err == (
        "error: ODE adjoint matching needs a deterministic single-step solver and DPMSolverPP2M is not one: use "
        "Euler(), Heun() or GDDIM(eta=0)\n"
    )
    assert not (tmp_path / "x").exists()
    assert said(capsys, *command, "--method", "ode-am", "method.sampler=heun")[0] == 0


def test_a_reward_that_turns_nan_is_one_sentence_and_keeps_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, score = tmp_path / "run", QuadraticReward.__call__
    calls = [0]

    def spoiled(self: QuadraticReward, x: torch.Tensor, prompts: object = None) -> torch.Tensor:
        values = score(self, x, prompts)
        calls[0] += prompts is not None  # evaluations ask without prompts
        return torch.where(torch.arange(len(x)) < 2, torch.nan, values) if calls[0] == 4 else values

    monkeypatch.setattr(QuadraticReward, "__call__", spoiled)
    settings = [*SMALL, "method.grid.n=5", "group_size=4"]
    code, _, err = said(capsys, "run", "mixture", "--out", str(out), "--method", "clipped-pg", *settings)
    assert code == 2
    assert err.splitlines()[-1].startswith(
        "error: the reward 'quadratic' returned NaN or infinity for 2 of 32 samples: clamp what it divides by or takes "
    )
    assert [r["iteration"] for r in RunFolder.open(out).records()] == [1, 2, 3]
    for path in checkpoints(out / "checkpoints"):
        verify(path)


REFUSED = {
    "batch": (
        ["--method", "clipped-pg", "batch=40"],
        "a batch of 40 samples does not divide into groups of 16: use 32 or",
    ),
    "deterministic": (
        ["--method", "clipped-pg", "method.sampler=euler"],
        "a policy gradient needs steps that have a density and Euler has none: use a stochastic single-step sampler",
    ),
    "window": (
        ["--method", "mix-grpo", "method.grid.n=3", "method.schedule=unchanged"],
        "the window of steps 0 .. 3 leaves the grid's 0 .. 2: move it, shorten it, or take more steps",
    ),
    "trained window": (
        ["--method", "clipped-pg", "method.steps={kind: window, start: 9, length: 5}"],
        "the window of trained steps 9 .. 13 leaves the 4 steps that have noise: move it, shorten it, or take more",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_online_methods_cannot_do_is_one_sentence(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words, sentence = REFUSED[case]
    code, _, err = said(capsys, "run", "mixture", "--out", str(tmp_path / "x"), *SMALL, "method.grid.n=5", *words)
    assert code == 2 and err.splitlines()[-1].startswith(f"error: {sentence}")


@pytest.mark.parametrize("settings", [["group_size=1"], ["slope=[0, 0]"]], ids=["groups of one", "equal rewards"])
def test_groups_without_variance_ring_and_the_run_goes_on(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Nothing is learned, the alarm says why at the first iteration, and nothing is NaN."""
    out = tmp_path / "x"
    words = ["--out", str(out), *SMALL, "method.grid.n=5", "train.iterations=2", *settings]
    code, text, _ = said(capsys, "run", "mixture", "--method", "clipped-pg", *words)
    assert code == 0 and "alarm at iteration 1: groups without variance: 100% of the samples share" in text
    rows = RunFolder.open(out).records()
    assert [r["zero_variance"] for r in rows] == [1.0, 1.0] and all(r["grad_norm"] == 0 for r in rows)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "mixture", "--metod", "am"], "--metod am is no option, did you mean --method?; `girsanov --help`"),
        (["sample"], "the following arguments are required: RUN; `girsanov sample --help`"),
        (["sample", "a", "-n", "many"], "argument -n: invalid int value: 'many'; `girsanov sample --help`"),
    ],
)
def test_a_mistyped_option_is_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as error:
        main(words)
    assert error.value.code == 2
    assert capsys.readouterr().err == f"error: {sentence} shows what there is\n"


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from girsanov.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(*sorted({'torch', 'numpy', 'pydantic', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "" and "girsanov run digits" in done.stdout


def test_a_settings_file_and_the_command_line_above_it(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "method:\n  kind: ode-am\n  grid: {kind: uniform, n: 5}\ntrain:\n  iterations: 2\n  lr: 1e-2\nwidth: 8\n"
    )
    launch = Launch.new(
        "mixture", [__import__("yaml").safe_load(file.read_text()), {"train": {"lr": 3e-3}}], tmp_path / "a", "x"
    )
    assert launch.config.train.lr == 3e-3 and launch.config.train.iterations == 2 and launch.config.width == 8
    assert launch.config.method.options["grid"] == {"kind": "uniform", "n": 5, "start": 1.0, "end": 0.0}


def test_a_damaged_checkpoint_is_skipped_on_resume(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "run"
    launch = Launch.new(
        "mixture", [{"method": "ode-am", "batch": 16, "train": {"iterations": 3}, "samples": 50}], out, "x"
    )
    run = execute(launch, device=device_of("cpu"), quiet=True)
    assert isinstance(run, Run)
    before = (out / "metrics.jsonl").read_text()
    newest = checkpoints(out / "checkpoints")[-1]
    (newest / "state.pt").write_bytes(b"not what it was")
    capsys.readouterr()
    assert main(["run", "mixture", "--out", str(out), "--resume"]) == 0
    sentence = f"skipped: {newest} is no whole checkpoint, state.pt is not as it was written: delete it and go on from"
    assert sentence in capsys.readouterr().out
    times = re.compile(r', "(time|speed)/[a-z_]+": [0-9.e-]+')
    assert times.sub("", (out / "metrics.jsonl").read_text()) == times.sub("", before)
