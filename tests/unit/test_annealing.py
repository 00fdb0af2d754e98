"""Stochasticity over training and over steps: the curves, the schedules, and the units of published samplers."""

import math

import pytest
import torch

from girsanov.annealing import CURVES, Constant, CosineCurve, Exponential, Linear, Polynomial, Staircase
from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.base import Turn
from girsanov.methods.policy_gradient import AnnealedEta
from girsanov.processes import RectifiedFlow
from girsanov.samplers import CPS, GDDIM, PRECISE, DPMSolverPP2M, Euler, FlowSDE, GDDIMSchedule, MemorylessFlow, Mixed
from girsanov.samplers.stochasticity import eta_of, with_eta


@pytest.mark.parametrize("name", [n for n in CURVES if n not in ("constant", "steps")])
def test_curves_meet_their_ends(name: str) -> None:
    curve = CURVES[name](3.0, 0.5)
    assert curve.over(5)[0] == 3.0 and abs(curve.over(5)[-1] - 0.5) < 1e-15
    assert list(curve.over(9)) == sorted(curve.over(9), reverse=True)


def test_middles() -> None:
    assert Constant(0.7).over(3) == (0.7, 0.7, 0.7)
    assert Linear(2.0, 1.0).at(0.5) == 1.5 and CosineCurve(2.0, 1.0).at(0.5) == pytest.approx(1.5)
    assert Exponential(4.0, 1.0).at(0.5) == pytest.approx(2.0) and Polynomial(2.0, 1.0, 2.0).at(0.5) == 1.25
    assert Staircase((3.0, 2.0, 1.0)).over(6) == (3.0, 3.0, 2.0, 2.0, 1.0, 1.0)
    for n in range(1, 40):  # one value a step, whatever their number
        assert Staircase(tuple(range(n))).over(n) == tuple(range(n))


def test_each_step_has_its_eta() -> None:
    grid, process, etas = Grid.uniform(5, end=0.02), RectifiedFlow(), (2.0, 1.0, 0.0, 0.5, 1.5)
    sampler = GDDIMSchedule(Staircase(etas))
    for step, eta in zip(grid, etas, strict=True):
        assert torch.equal(
            torch.stack(sampler.coefficients(process, step)), torch.stack(GDDIM(eta).coefficients(process, step))
        )
    assert sampler.stochastic and not sampler.memoryless
    assert not GDDIMSchedule(Constant(0.0)).stochastic and GDDIMSchedule(Constant(1.0)).memoryless


def test_eta_over_training() -> None:
    schedule = AnnealedEta(Linear(2.0, 0.5))
    grid = Grid.uniform(4)
    etas = [schedule.at(GDDIM(9.0), grid, Turn(0, i, 4)).eta for i in range(4)]
    assert etas == [2.0, 1.5, 1.0, 0.5]
    moved = schedule.at(Mixed(FlowSDE(), DPMSolverPP2M(), 1, 2), grid, Turn(0, 3, 4))
    assert moved == Mixed(FlowSDE(0.5 * math.sqrt(2)), DPMSolverPP2M(), 1, 2)


def test_units() -> None:
    for sampler in (GDDIM(0.7), FlowSDE(0.7 * math.sqrt(2)), PRECISE(0.7 * math.sqrt(2))):
        assert eta_of(sampler) == pytest.approx(0.7) and eta_of(with_eta(sampler, 1.3)) == pytest.approx(1.3)
    assert eta_of(MemorylessFlow()) == 1 and eta_of(Euler()) == 0
    for sampler in (Mixed(), CPS()):
        with pytest.raises(GirsanovError, match="no single eta"):
            eta_of(sampler)
    with pytest.raises(GirsanovError, match="no level"):
        with_eta(Euler(), 1.0)


def test_what_is_refused() -> None:
    for make in (lambda: Exponential(0.0, 1.0), lambda: Polynomial(1.0, 2.0, 0.0), lambda: Staircase(())):
        with pytest.raises(GirsanovError):
            make()
    with pytest.raises(GirsanovError, match="at least one value"):
        Linear().over(0)
    with pytest.raises(GirsanovError, match="at least 0"):
        GDDIMSchedule(Constant(-1.0)).coefficients(RectifiedFlow(), Grid.uniform(2)[0])
