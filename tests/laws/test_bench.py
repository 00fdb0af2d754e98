"""The bench itself: every listed method runs in it, and those with a limit reach it.

Accuracy at the full budget (seeds 0 and 1) is marked slow; the default run trains the cheap ones with less.
"""

import json
from pathlib import Path

import pytest
import torch

from girsanov.bench import report, run_bench
from girsanov.bench.nets import Correction
from girsanov.bench.problems import BETA, PROBLEMS, Summary
from girsanov.bench.run import SETTINGS, along, approach, make_method, run_one, stopped, tuned
from girsanov.bench.training import FULL, Budget
from girsanov.errors import GirsanovError
from girsanov.methods import METHODS

TINY = Budget(iterations=1, batch=64)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_in_the_bench(name: str) -> None:
    """One iteration of 64 samples: finite numbers, a reward on or below the frontier."""
    result = run_one(name, PROBLEMS["gaussian-linear"], 0, TINY)
    assert all(v == v for v in (result.mean, result.variance, result.kl, result.reward)) and result.calls > 0
    assert result.reward <= PROBLEMS["gaussian-linear"].frontier.best(result.kl) + 1e-6


@pytest.mark.parametrize(
    ("name", "problem", "budget", "tolerance"),
    [
        ("am", "gaussian", Budget(100, 512), 0.02),
        ("am", "gaussian-linear", Budget(100, 512), 1e-3),
        ("ode-am", "gaussian", Budget(150, 256), 0.01),
        ("nft", "gaussian-linear", Budget(120, 2048), 0.02),
        ("diffusion-dpo", "gaussian-linear", Budget(200, 2048), 0.03),
        ("rank-dpo", "gaussian-linear", Budget(100, 512), 0.03),
        ("prdp", "gaussian-linear", Budget(60, 128), 0.01),
        ("clipped-pg", "gaussian-linear", Budget(120, 2048), 0.05),
        ("ctrl", "gaussian-linear", Budget(80, 256), 0.02),
    ],
)
def test_training_reaches_the_limit(name: str, problem: str, budget: Budget, tolerance: float) -> None:
    """Seed 0; the tolerances are about twice what these small budgets reach."""
    result = run_one(name, PROBLEMS[problem], 0, budget)
    assert result.to_limit is not None and result.to_limit < tolerance
    assert result.share < 1 + 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", SETTINGS)
def test_full_accuracy(name: str, problem: str) -> None:
    """Within 3 % of the discrete limit for each of two seeds (adjoint methods: half a per cent)."""
    results = [run_one(name, PROBLEMS[problem], seed, FULL) for seed in (0, 1)]
    errors = [r.to_limit for r in results]
    if errors[0] is None:
        assert all(0 < r.share <= 1 + 1e-3 for r in results)
        return
    assert max(errors) < (0.005 if name in ("am", "ode-am") else 0.03)


def test_the_orders() -> None:
    """Limits tend to their laws with order 1 (2 by Heun); Richardson from 40 and 80 steps within 1.5 %."""
    for name, order in (("am", 1), ("ode-am", 1), ("clipped-pg", 1), ("ddpo", 1), ("rvm", 2), ("diffusion-dpo", 2)):
        for problem in ("gaussian", "gaussian-linear"):
            found = approach(name, PROBLEMS[problem])
            if found is not None:
                assert (abs(found.order - order) < 0.3 or found.error < 1e-3) and found.richardson < 0.015, (
                    name,
                    problem,
                    found,
                )
    assert approach("draft", PROBLEMS["gaussian"]) is None


def test_the_frontier_of_the_mixture_is_the_chains_own() -> None:
    curve = PROBLEMS["mixture"].frontier
    assert (curve.kl[1:] > curve.kl[:-1]).all() and (curve.reward[1:] > curve.reward[:-1]).all()
    kl, reward = PROBLEMS["mixture"].optimum(BETA)
    assert abs(curve.best(kl) - reward) < 2e-3


def test_stopping_spends_the_asked_path_kl() -> None:
    problem = PROBLEMS["gaussian"]
    net = Correction(problem.law, problem.model, problem.grid, problem.features)
    path = [0.05 * k * torch.ones_like(net.weight) for k in range(6)]
    at = stopped(problem, net, path, 0.05)
    assert 0 < at < 5
    assert abs(problem.score(tuned(problem, net, along(path, at)))[0] - 0.05) < 2e-3
    assert stopped(problem, net, path[:1] * 3, 0.05) == 2.0


def test_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Table, JSON and plot of a short run; the JSON holds what the table shows."""
    where = {"json_path": tmp_path / "bench.json", "plot_path": tmp_path / "bench.png"}
    budget, report.FAST = report.FAST, Budget(20, 128)
    try:
        rows = run_bench(**where, methods=["am", "draft"], fast=True, problems=["gaussian-linear"])
    finally:
        report.FAST = budget
    assert [r["method"] for r in rows] == ["am", "draft"]
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["rows"] == rows and len(record["results"]) == 2
    assert (tmp_path / "bench.png").read_bytes()[:4] == b"\x89PNG"
    text = capsys.readouterr().out
    assert "### gaussian-linear" in text and f"{100 * rows[0]['to_limit']:.2f}" in text and "| draft |" in text


def test_rows_of_two_runs_are_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run replaces its own rows in an existing file and keeps the others, in the usual order of methods."""
    path, problem = tmp_path / "bench.json", ["gaussian-linear"]
    budget, report.FAST = report.FAST, Budget(3, 64)
    try:
        for names, command in ((["ddpo", "am"], "first"), (["draft", "ddpo"], "second")):
            run_bench(path, None, names, fast=True, problems=problem, command=command)
    finally:
        report.FAST = budget
    record = json.loads(path.read_text())
    assert [r["method"] for r in record["rows"]] == ["am", "draft", "ddpo"] and record["commands"] == [
        "first",
        "second",
    ]
    assert len(record["results"]) == 3 and set(record["exact"]) == {"gaussian-linear"}
    with pytest.raises(GirsanovError, match="rows were made with other settings"):
        run_bench(path, None, ["am"], seeds=1, problems=problem)


def test_refusals_and_errors_of_summaries() -> None:
    with pytest.raises(GirsanovError, match="knows no method 'ppo'"):
        run_bench(methods=["ppo"])
    a, b = (
        Summary(torch.tensor([m], dtype=torch.float64), torch.tensor([[v]], dtype=torch.float64), w)
        for m, v, w in ((1.0, 2.0, 0.5), (1.2, 4.0, 0.6))
    )
    assert abs(a.error(b) - 0.5) < 1e-6 and a.error(a) < 1e-6
    assert abs(float(a.extrapolated(b, 2.0).mean) - 0.8) < 1e-6
    assert make_method("am", PROBLEMS["mixture"]).grid == PROBLEMS["mixture"].grid
