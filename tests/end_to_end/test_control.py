"""The control recipes and the time-step study from the command line, small."""

import importlib.util
import json
from pathlib import Path

import pytest

from girsanov.cli import main
from girsanov.control import LQ, AffinePolicy
from girsanov.studies import timestep

SMALL = ["environment.dt=0.2", "batch=16", "samples=100", "train.iterations=3", "evaluate_every=2", "--device", "cpu"]


def lines(folder: Path, kind: str | None) -> list[dict[str, float]]:
    """The metrics of a kind, times left out."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = ("time/", "speed/")
    return [{k: v for k, v in r.items() if not k.startswith(measured)} for r in rows if r.get("kind") == kind]


@pytest.mark.parametrize("recipe", ["lq", pytest.param("pairs", marks=pytest.mark.slow)])
def test_a_recipe_writes_its_report_and_goes_on_exactly(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["run", recipe, "--out", str(whole), *SMALL]) == 0
    assert main(["run", recipe, "--out", str(parts), *SMALL, "train.iterations=3", "--method", "cppo"]) == 0
    page = (whole / "report.html").read_text()
    for word in (
        "Value at the start",
        "Error of the slope",
        "beside the exact answer",
        "<h3>Policy: mean",
        "<h3>Occupation",
    ):
        assert word in page
    drawn = {d["title"]: d for d in json.loads((whole / "drawings.json").read_text())["drawings"]}
    occupied = {"lq": {"Occupation"}, "pairs": {"Occupation: spread", "Occupation: log wealth"}}[recipe]
    assert set(drawn) == {"Value", "Policy: mean of the action", "Policy: standard deviation"} | occupied
    exact, learned = drawn["Policy: mean of the action"]["lines"]
    assert exact["y"] != learned["y"] and all(e > 0 for e in exact["error"])
    assert "the learned policy" in page and "pretrained" not in page
    for checkpoint in list((parts / "checkpoints").iterdir())[
        1:
    ]:  # all but the first are gone: a kill after iteration 0
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    assert main(["run", recipe, "--out", str(parts), "--resume", "--device", "cpu"]) == 0
    for kind in (None, "evaluation"):
        assert lines(parts, kind) == lines(whole, kind)
    assert main(["compare", str(whole), str(parts), "--out", str(tmp_path / "both.html")]) == 0
    assert "Loss against the best policy" in capsys.readouterr().out
    assert main(["sample", str(whole), "-n", "5", "--device", "cpu"]) == 0
    assert main(["evaluate", str(whole), "--device", "cpu"]) == 0


def test_mistakes_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, sentence in {
        ("method.rat=td",): "method.rat is no setting: did you mean rate?",
        ("--method", "nft"): "'nft' is no agent: there are cpg, cppo",
        ("actor.slope=[[2.0]]",): "this policy has no value",
        ("environment.dt=0",): "environment.dt must be greater than 0",
        ("--lora",): "policies over actions are small: train all their weights, without --lora",
        ("method.environment=lq",): "is not that of the run (dt = 0.02, discount = 1)",
        ("method.occupation={kind: discounted, horizon: 0.01}",): "is shorter than one step of dt = 0.02",
    }.items():
        assert main(["run", "lq", "--out", str(tmp_path / "a"), *words, "--device", "cpu"]) == 2, words
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "a").exists() or not (tmp_path / "a" / "report.html").exists()
        for path in sorted((tmp_path / "a").rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()


# ---- the study


def test_the_study_runs_without_the_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of budget and the spreads, tiny; the page says what was left out."""
    monkeypatch.setattr(timestep, "find_spec", lambda name: None)
    out = tmp_path / "study"
    assert main(["study", "timestep", "--fast", "--out", str(out)]) == 0
    record = json.loads((out / "study.json").read_text())["sections"]
    assert set(record) == {"variance", "time", "samples"}
    for row in record["variance"]["rows"]:
        assert row["generator"] < row["centred"] < row["td"] and row["td"] == pytest.approx(row["predicted"], rel=0.35)
    assert {r["method"] for r in record["time"]["rows"]} == set(timestep.OURS)
    assert all(0 < v < 2 for r in record["samples"]["rows"] for v in r["losses"])
    assert "PPO was left out: stable-baselines3 is not installed" in (out / "report.html").read_text()


def test_the_equal_budgets_are_equal() -> None:
    for dt in timestep.STEPS:
        assert timestep.EQUAL_TIME.copies(dt) == timestep.COPIES
        assert timestep.EQUAL_SAMPLES.copies(dt) / dt == pytest.approx(timestep.COPIES / timestep.MIDDLE)


@pytest.mark.skipif(importlib.util.find_spec("stable_baselines3") is None, reason="needs the extra rl")
def test_ppo_learns_and_repeats() -> None:
    """dt = 0.2, 16 copies, 6 iterations, seed 0: a tenth of the loss is gone, and a seed gives the same bits."""
    from girsanov.control.sb3 import Baseline

    env, start = LQ(dt=0.2), AffinePolicy.scalar(-0.3, 0.0, 0.25)
    first, second = (Baseline(copies=16, iterations=6, trace=2.0, lr=1e-2).train(env, start, 0) for _ in range(2))
    before, after = timestep.loss_of(env, start), timestep.loss_of(env, first)
    assert before is not None and after is not None and after < 0.9 * before
    assert first.slope.equal(second.slope) and first.covariance.equal(second.covariance)


@pytest.mark.skipif(importlib.util.find_spec("stable_baselines3") is None, reason="needs the extra rl")
def test_ppo_starts_where_it_is_told_to() -> None:
    from girsanov.control.sb3 import Baseline

    env, start = LQ(dt=0.5), AffinePolicy.scalar(-0.3, 0.1, 0.25)
    same = Baseline(iterations=1, copies=2, lr=1e-12).train(env, start, 0)
    assert abs(float(same.slope) + 0.3) < 1e-6 and abs(float(same.covariance) - 0.25) < 1e-6
