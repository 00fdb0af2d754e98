"""Steps remembered by value: who is, who is not, and that nothing of the first asker sticks to them."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from girsanov.grids import Grid
from girsanov.models import Model
from girsanov.processes import VP, Process, RectifiedFlow, VPTable
from girsanov.samplers import GDDIM, EulerMaruyama
from girsanov.samplers.plan import plan, remembered
from girsanov.types import Step

STEP = Grid.uniform(4)[1]
X = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    remembered.cache_clear()
    yield
    remembered.cache_clear()


def test_equal_parts_share_a_step() -> None:
    one = plan(GDDIM(1.0), VP(), "eps", STEP)
    assert plan(GDDIM(1.0), VP(), "eps", Grid.uniform(4)[1]) is one
    for other in (
        plan(GDDIM(0.5), VP(), "eps", STEP),
        plan(GDDIM(1.0), VP(0.2), "eps", STEP),
        plan(GDDIM(1.0), VP(), "v", STEP),
        plan(GDDIM(1.0), VP(), "eps", Grid.uniform(4)[2]),
        plan(EulerMaruyama(1.0), VP(), "eps", STEP),
    ):
        assert other is not one and not torch.equal(other.c_p, one.c_p)
    table = VPTable.stable_diffusion()
    assert plan(GDDIM(), table, "eps", STEP) is plan(GDDIM(), VPTable(table.alphas_cumprod), "eps", STEP)


@pytest.mark.parametrize("sampler", [GDDIM(1.0), EulerMaruyama(0.5)], ids=str)
def test_remembering_changes_no_bit(sampler: GDDIM) -> None:
    """The remembered step is the one worked out for the same times given per sample, which is not remembered."""
    model = Model(lambda x, t, c: torch.tanh(x), VP(), "eps", (3,))
    for step in Grid.uniform(5):
        first, again = (sampler.kernel(model, X, step)[0] for _ in range(2))
        each = sampler.kernel(model, X, Step(step.t.repeat(2), step.s.repeat(2), step.i, step.n))[0]
        assert torch.equal(first.mean, again.mean) and torch.equal(first.std, again.std)
        assert torch.allclose(first.mean, each.mean, rtol=0, atol=1e-15)


def test_a_step_first_asked_in_inference_mode_can_be_trained_on() -> None:
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    model = Model(lambda x, t, c: weight * x, RectifiedFlow(), "velocity", (3,))
    with torch.inference_mode():
        old = GDDIM(1.0).kernel(model, X, STEP)[0].mean
    kernel = GDDIM(1.0).kernel(model, X, STEP)[0]
    ratio = kernel.log_ratio(old.clone() + 0.1, X)
    (gradient,) = torch.autograd.grad(ratio.sum(), weight)
    assert float(gradient) != 0 and not kernel.std.is_inference()


def test_what_may_change_is_not_remembered() -> None:
    """A process that is no frozen dataclass, or holds something unhashable, is asked anew at every step."""

    class Mutable(Process):
        speed = 1.0

        def _schedule(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            u, one = t**self.speed, torch.ones_like(t)
            slope = self.speed * t ** (self.speed - 1)
            return one - u, u, -slope, slope

        def time_of_rho(self, rho: Tensor) -> Tensor:
            return (rho / (1 + rho)) ** (1 / self.speed)

    process = Mutable()
    before = plan(GDDIM(1.0), process, "eps", STEP)
    process.speed = 2.0
    assert not torch.equal(plan(GDDIM(1.0), process, "eps", STEP).c_p, before.c_p)

    @dataclass(frozen=True)
    class Holding(RectifiedFlow):
        notes: tuple[list[int], ...] = ([1],)

    plan(GDDIM(1.0), Holding(), "eps", STEP)
    assert remembered.cache_info().currsize == 0
