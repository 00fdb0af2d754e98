"""The main job on real digits, as a user runs it: shorter pretraining, everything else for real."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from girsanov.checkpoint import checkpoints, verify
from girsanov.cli import main
from girsanov.methods import METHODS

SHORT = ["pretrain.iterations=400", "samples=200", "--device", "cpu"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One pretrained model for the tests of this file, away from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIRSANOV_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def lines(folder: Path, kind: str) -> list[dict]:
    rows = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row.get("kind", "iteration") == kind]


def test_bold_digits_end_in_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    code = main(["run", "digits", "--out", str(out), *SHORT, "train.iterations=12", "evaluate_every=12"])
    assert code == 0
    first, last = lines(out, "evaluation")[0], lines(out, "evaluation")[-1]
    assert last["reward"] > first["reward"] + 3  # measured: about +8 pixels of ink in 12 iterations
    assert last["judge"] > first["judge"] - 0.08 and last["kl"] > 1
    page = (out / "report.html").read_text()
    assert "data:image/png;base64" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert (out / "samples/before.png").exists() and (out / "samples/after.png").exists()

    assert main(["sample", str(out), "-n", "20", "--strength", "0.5", "--out", str(tmp_path / "half")]) == 0
    capsys.readouterr()
    assert len(list((tmp_path / "half").glob("????-?.png"))) == 20
    assert main(["evaluate", str(tmp_path / "half")]) == 0
    assert "judge " in capsys.readouterr().out


def test_over_optimising_tenfold_rings_the_alarm(tmp_path: Path) -> None:
    out = tmp_path / "run"
    tenfold = ["method.cost.lam=0.1", "train.iterations=30", "evaluate_every=5"]
    assert main(["run", "digits", "--out", str(out), *SHORT, *tenfold]) == 0
    rung = {row["alarm"] for row in lines(out, "alarm")}
    assert "reward-hacking" in rung
    evaluations = lines(out, "evaluation")
    assert evaluations[-1]["reward"] > evaluations[0]["reward"] and evaluations[-1]["judge"] < evaluations[0]["judge"]
    assert "reward-hacking" in (out / "report.html").read_text() or "hacked" in (out / "report.html").read_text()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_by_its_name(method: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    small = ["train.iterations=1", "groups=2", "group_size=4", "pairs=40", "samples=40"]
    assert main(["run", "digits", "--out", str(out), "--method", method, *SHORT, *small]) == 0
    (row,) = lines(out, "iteration")
    assert row["grad_norm"] > 0
    learns = METHODS[method].__module__.startswith("girsanov.methods.preference")
    assert all(("recovered" in row) == learns for row in lines(out, "evaluation"))


BAD_REWARDS = {
    "raises": ("raise ValueError('no font')", "raised ValueError: no font"),
    "nan": ("return [float('nan')] * len(x)", "returned NaN or infinity for 16 of 16 samples"),
    "short": ("return [1.0, 2.0]", "returned 2 scores for 16 samples: return one number a sample"),
    "text": ("return ['good'] * len(x)", "returned text ('good'): return one number a sample"),
    "hangs": ("import time; time.sleep(20)", "gave no answer within 0.2 s: raise its timeout"),
}
TRAIN = ["train.iterations=3", "evaluate_every=3", "checkpoint_every=1", "groups=2", "group_size=8", "method.grid.n=4"]


def bad_run(tmp_path: Path, body: str, *settings: str) -> tuple[int, Path]:
    """A digits run whose reward fails from its third batch of 16 on (evaluations are of 200 samples)."""
    out, file = tmp_path / "run", tmp_path / "mine.py"
    file.write_text(
        "calls = [0]\n\ndef fn(x, labels):\n    calls[0] += len(x) == 16\n"
        f"    if calls[0] > 2 and len(x) == 16:\n        {body}\n    return [float(i.mean()) for i in x]\n"
    )
    reward = f"reward={{kind: pooled, reward: '{file}:fn', timeout: 0.2{', on_failure: drop' * ('drop' in settings)}}}"
    rest = [s for s in settings if s != "drop"]
    return main(["run", "digits", "--out", str(out), "--method", "flow-grpo", *SHORT, *TRAIN, reward, *rest]), out


@pytest.mark.parametrize(
    "case", ["raises", *(pytest.param(c, marks=pytest.mark.slow) for c in BAD_REWARDS if c != "raises")]
)
def test_a_reward_that_breaks_ends_the_run_with_a_sentence(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two iterations are done and saved; the third says what the reward did."""
    body, sentence = BAD_REWARDS[case]
    code, out = bad_run(tmp_path, body)
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and error.startswith("error: the reward 'fn' ") and sentence in error
    assert len(lines(out, "iteration")) == 2
    for path in checkpoints(out / "checkpoints"):
        verify(path)


def test_a_run_goes_on_without_rewards_and_rings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Failures are let pass: the third iteration has no sample, says so, and ends the run only if asked to."""
    code, out = bad_run(tmp_path, BAD_REWARDS["raises"][0], "drop", "stop_on=[all-dropped]", "train.iterations=5")
    assert code == 0
    (alarm,) = lines(out, "alarm")
    assert alarm["alarm"] == "all-dropped" and alarm["iteration"] == 3
    assert alarm["message"].startswith("every sample was dropped: the reward failed for the whole batch")
    assert [row["dropped"] for row in lines(out, "iteration")] == [0.0, 0.0, 1.0]
