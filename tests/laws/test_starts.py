"""Samples that begin from a clean one: the law of the first state, and of what the reverse process makes of it."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from girsanov import starts
from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods import METHODS
from girsanov.noise import Noise
from girsanov.problems import Gaussian, LinearReward
from girsanov.processes import RectifiedFlow
from girsanov.prompts import TextPrompts
from girsanov.rollout import rollout
from girsanov.samplers import GDDIM
from girsanov.starts import START, first_states, last_steps
from girsanov.train import Run, TrainConfig, iterate
from girsanov.types import Cond
from tests.laws.cases import EVERY_PROCESS, F64
from tests.laws.mutation import Mutation, check, mutants
from tests.tiny import tiny_policy

MEAN, VARIANCE, T0 = 0.5, 2.0, 0.5
HERE = torch.tensor([[-2.0], [1.5]], dtype=F64)


class Silent(Noise):
    """Zeros: every law here is affine in the noise, so its mean is what zeros give."""

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(len(self.generators), *shape, dtype=dtype)


def begun(process: str, noise: Noise, grid: Grid) -> Tensor:
    model = Gaussian(MEAN, VARIANCE).model(EVERY_PROCESS[process])
    return first_states(model, grid, noise, Cond({START: HERE}, torch.arange(2)), F64)


def first_law() -> None:
    """alpha x_start + sigma z, every process, to 1e-12."""
    ids = torch.arange(2)
    for name, process in EVERY_PROCESS.items():
        c, z = process(torch.tensor(T0, dtype=F64)), Noise(0, 0, ids).normal((1,), F64)
        found = begun(name, Noise(0, 0, ids), Grid.uniform(4, start=T0))
        assert torch.allclose(found, float(c.alpha) * HERE + float(c.sigma) * z, atol=1e-12), name


def test_the_first_state_is_the_start_noised_to_the_grids_first_time() -> None:
    first_law()


@pytest.mark.parametrize("process", EVERY_PROCESS)
def test_the_mean_of_the_end_is_the_posterior_mean(process: str) -> None:
    r"""Gaussian data, the exact network: the reverse SDE from ``x_start`` ends with the mean

    ``m + alpha s^2 / (alpha^2 s^2 + sigma^2) alpha (x_start - m)``; gDDIM at eta = 1 keeps means on any grid: 4 steps,
    1e-9.
    """
    model = Gaussian(MEAN, VARIANCE).model(EVERY_PROCESS[process])
    grid, noise = Grid.uniform(4, start=T0), Silent(0, 0, torch.arange(2))
    c = EVERY_PROCESS[process](grid.ts[0])
    with torch.no_grad():
        end = rollout(model, GDDIM(1.0), grid, begun(process, noise, grid), noise=noise).x0
    alpha, sigma = float(c.alpha), float(c.sigma)
    gain = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
    assert torch.allclose(end, MEAN + gain * alpha * (HERE - MEAN), atol=1e-9)


def test_without_a_start_it_is_the_prior() -> None:
    model, ids = Gaussian(MEAN, VARIANCE).model(EVERY_PROCESS["ve"]), torch.arange(3)
    z = Noise(0, 0, ids).normal((1,), F64)
    for cond in (None, Cond({"other": torch.zeros(3, 1)}, ids)):
        found = first_states(model, Grid.uniform(4), Noise(0, 0, ids), cond, F64)
        assert torch.equal(found, model.process.prior(z))


@mutants(
    [
        Mutation(starts, "first_states", "start, z, c.alpha, c.sigma", "start, z, c.sigma, c.alpha", first_law),
        Mutation(starts, "first_states", "grid.ts[0]", "grid.ts[1]", first_law),
        Mutation(starts, "first_states", "combine(start, z", "combine(0 * start, z", first_law),
    ]
)
def test_a_wrong_start_is_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)


def test_strength_is_the_share_of_steps_that_are_left() -> None:
    """The last floor(strength n) steps, and sentences for none of them."""
    grid = Grid.shifted(10, 3.0)
    assert torch.equal(last_steps(grid, 0.6).ts, grid.ts[4:]) and len(last_steps(grid, 0.59)) == 5
    assert len(last_steps(Grid.uniform(100), 0.29)) == 29 and last_steps(grid, 1.0) == grid
    for strength in (0.05, 0.0, 1.5, -0.3):
        with pytest.raises(GirsanovError, match="leaves none of 10 steps: take between 0.1 and 1"):
            last_steps(grid, strength)


def test_a_start_of_another_shape_is_told() -> None:
    model = Gaussian(MEAN, VARIANCE).model(RectifiedFlow())
    cond = Cond({START: torch.zeros(2, 3)}, torch.arange(2))
    with pytest.raises(GirsanovError, match=r"start of a sample has the shape \[3\] and the model's samples \[1\]"):
        first_states(model, Grid.uniform(2, start=T0), Noise(0, 0, torch.arange(2)), cond)


STARTING = ["am", "ode-am", "draft", "clipped-pg", "branch-grpo", "ctrl", "nft", "online-dpo", "d3po", "spo", "prdp"]
STARTING += ["dlpo"]


def encode(texts: Sequence[str]) -> dict[str, Tensor]:
    return {"text": torch.zeros(len(texts), 1, dtype=F64)}


@pytest.mark.parametrize("name", STARTING)
def test_every_family_rolls_out_from_the_start(name: str) -> None:
    """The mean reward x[0] of an untuned network follows the start: (-3, 0) or (3, 0), noised to t = .25.

    The noised starts are 4.5 apart; the batches are more than 2 apart (four samples each, seed 0, the same noise).
    """
    rewards, field = [], "rollout_grid" if name == "online-dpo" else "grid"
    for side in (-3.0, 3.0):
        table = torch.tensor([[side, 0.0]], dtype=F64)
        size = {"groups_per_batch": 1, "group_size": 4}
        prompts = TextPrompts(texts=["a"], encode=encode, conditions={START: table}, **size)
        grid = Grid.uniform(10 if name == "branch-grpo" else 4, start=0.25)
        method = METHODS[name](reward=LinearReward([1.0, 0.0]), **{field: grid})
        rewards.append(iterate(Run(tiny_policy(), method, TrainConfig(iterations=1), prompts))["reward"])
    assert rewards[1] - rewards[0] > 2
