"""The studies of score as action: their exact parts against closed forms, their counters, both pages (slow)."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from girsanov.cli import main
from girsanov.models import denoised
from girsanov.problems import OptimalControl, end_law
from girsanov.problems.moments import affine_kernels, prior_moments
from girsanov.problems.recursions import path_kl_limit
from girsanov.studies import discretisation, values_exact
from girsanov.studies.discretisation import BETA, LAW, REWARD, TRAINED, Calls, Until, exact_section
from girsanov.studies.values_exact import PROBLEMS, PROCESS, errors, paths

F64 = torch.float64


def test_the_exact_values_of_the_study() -> None:
    """Untuned: ``r(x0_hat) - tr(A S) / 2`` on the Gaussian; optimal: that of ``OptimalControl``.

    On the mixture the first averages to the expected reward: seed 0, 200000 states, 4 standard errors.
    """
    gaussian, modes = PROBLEMS
    t, g = torch.tensor(0.6, dtype=F64), torch.Generator().manual_seed(0)
    x = gaussian.states("untuned", t, 5, g)
    control = OptimalControl(gaussian.law, gaussian.reward, values_exact.BETA, PROCESS)
    torch.testing.assert_close(gaussian.value("optimal", x, t), control.value(x, t), rtol=1e-10, atol=1e-12)
    c = PROCESS(t.expand(1))
    S = gaussian.law.posterior_covs(c.alpha, c.sigma)[0, 0]
    clean = denoised(gaussian.law.model(PROCESS), x, t)
    wanted = gaussian.reward(clean) - 0.5 * (gaussian.reward.A * S).sum()
    torch.testing.assert_close(gaussian.value("untuned", x, t), wanted, rtol=1e-10, atol=1e-12)
    seen = modes.value("untuned", modes.states("untuned", t, 200_000, g), t)
    exact = modes.reward.expected(modes.law.mean, modes.law.cov)
    assert abs(float(seen.mean() - exact)) < 4 * float(seen.std()) / 200_000**0.5


@pytest.mark.parametrize("kind", ["untuned", "optimal"])
def test_returns_have_the_value_as_their_mean(kind: str) -> None:
    """At the noisy end, where the value is a constant: seed 0, 4000 paths, 4 standard errors and .02 for the steps."""
    problem = PROBLEMS[0]
    data = paths(problem, kind, 4000, 0)
    start = problem.value(kind, data.x[0], data.t[0])
    gap = data.y[0] - start
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / 4000**0.5 + 0.02


def test_errors_of_the_first_guess() -> None:
    """The reward of the denoised sample is off by a function of time for a Gaussian: its gradient is exact."""
    from girsanov.nets.skip import FullSkip

    wrong, slope = errors(PROBLEMS[0], "untuned", None, FullSkip())
    assert wrong > 0.05 and slope < 1e-9
    assert errors(PROBLEMS[0], "optimal", None, FullSkip())[1] > 0.05


def test_the_field_of_a_fixed_point_gives_its_law_on_its_own_grid() -> None:
    section = exact_section(fast=True)
    (row,) = [
        r
        for r in section.data["rows"]
        if (r["method"], r["trained"], r["solver"], r["steps"]) == ("score as action", TRAINED, "SDE", TRAINED)
    ]
    model, grid = LAW.model(discretisation.RectifiedFlow()), discretisation.Grid.uniform(TRAINED)
    base = affine_kernels(model, discretisation.GDDIM(1.0), grid)
    law = path_kl_limit(base, prior_moments(model), REWARD, BETA).law
    untuned = end_law(model, discretisation.GDDIM(1.0), grid)
    gain = REWARD.expected(law.mean, law.cov) - REWARD.expected(untuned.mean, untuned.cov)
    assert abs(row["gain"] - float(gain)) < 1e-9
    assert len(section.tables[0].rows) == 8 and section.plots[0].lines[-1].name == "tilted law"


def test_calls_are_counted_and_end_a_run() -> None:
    """Forwards, and backwards where there is a graph; a run stops where the next iteration would use too much."""
    net = nn.Linear(2, 2)
    until = Until(Calls(net), limit=100)

    class Fake:
        done, stopped = 0, None

        def stop(self, why: str) -> None:
            self.stopped = why

    run = Fake()
    until.start(run)
    with torch.no_grad():
        net(torch.zeros(10, 2))
    assert until.calls.total == 10
    net(torch.zeros(10, 2))
    assert (until.calls.forward, until.calls.backward) == (20, 10)
    run.done = 1
    until.iteration(run, {})
    assert run.stopped is None  # 30 an iteration: three fit
    for _ in range(2):
        net(torch.zeros(15, 2))
        run.done += 1
        until.iteration(run, {})
    assert run.stopped is not None and until.spent == [30, 60, 90]


@pytest.mark.slow
def test_both_studies_run(tmp_path: Path) -> None:
    for name, sections in (("values", {"Gaussian", "two-modes", "digits"}), ("discretisation", {"exact", "digits"})):
        out, numbers = tmp_path / name, tmp_path / f"{name}.json"
        assert main(["study", name, "--fast", "--out", str(out), "--json", str(numbers)]) == 0
        record = json.loads(numbers.read_text())
        assert set(record["sections"]) == sections and str(tmp_path) not in numbers.read_text()
        assert (out / "report.html").read_text().count("<table") >= 3
    assert main(["study", "values", "--parts", "digit"]) == 2
