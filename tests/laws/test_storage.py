"""States kept in half precision: what is replayed is what was sampled, so log-probs and ratios agree to the bit."""

import dataclasses
import importlib

import pytest
import torch

from girsanov.grids import Grid
from girsanov.methods import METHODS
from girsanov.methods.base import Turn
from girsanov.models import Model
from girsanov.noise import Noise
from girsanov.problems import Gaussian, LinearReward
from girsanov.processes import RectifiedFlow
from girsanov.rollout import replay, rollout
from girsanov.samplers import GDDIM
from girsanov.starts import STORAGE, Storage, first_states
from girsanov.train import iterate
from girsanov.types import Trajectory
from tests.laws.mutation import Mutation, check, mutants
from tests.tiny import tiny_run

loop = importlib.import_module("girsanov.rollout")  # the package gives the function that name
GRID, IDS = Grid.uniform(6), torch.arange(16)


def model() -> Model:
    return Gaussian([0.5, -1.0], [[1.0, 0.3], [0.3, 2.0]]).model(RectifiedFlow())


def walked(dtype: torch.dtype) -> Trajectory:
    """Six steps of gDDIM at eta = 1 with states of a dtype, the noise of seed 0."""
    noise = Noise(0, 0, IDS)
    return rollout(model(), GDDIM(1.0), GRID, first_states(model(), GRID, noise, None, dtype), noise=noise)


def apart(path: Trajectory) -> float:
    """The largest |log-prob when sampled - log-prob when replayed| of the stored states."""
    gaps = []
    for tr, kernel in replay(model(), GDDIM(1.0), path):
        if tr.stochastic:
            gaps.append(dataclasses.replace(kernel, mean=tr.mean).log_prob(tr.x_s) - kernel.log_prob(tr.x_s))
    return float(torch.stack(gaps).abs().max())


def law() -> None:
    """Stored and replayed log-probs agree to the bit; states are bf16, means and the end float32."""
    path = walked(torch.bfloat16)
    assert all(tr.x_t.dtype == tr.x_s.dtype == torch.bfloat16 for tr in path)
    assert all(tr.mean.dtype == torch.float32 for tr in path) and path.x0.dtype == torch.float32
    assert all(tr.stages[0].x is tr.x_t for tr in path), "a second copy of the states in float32 is kept"
    assert torch.equal(path.x0, path.transitions[-1].x_s.float())
    assert apart(path) == 0.0


def test_what_is_replayed_is_what_was_sampled() -> None:
    law()


@mutants(
    [
        Mutation(loop, "rollout", ".to(x.dtype)", "", law),  # the states grow back to float32
        Mutation(loop, "rollout", "x, parent = x_s, None", "x, parent = (1.01 * x_s).to(x.dtype), None", law),
        Mutation(loop, "rollout", "Stage(x, s.t, s.weight)", "Stage(asked, s.t, s.weight)", law),
    ]
)
def test_a_wrong_order_is_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)


def test_rounding_what_was_sampled_afterwards_is_not() -> None:
    """The same states rounded after a float32 rollout: log-probs move by more than 1e-2."""
    exact = walked(torch.float32)
    rounded = [dataclasses.replace(tr, x_t=tr.x_t.to(torch.bfloat16), x_s=tr.x_s.to(torch.bfloat16)) for tr in exact]
    assert apart(exact) == 0.0
    assert apart(dataclasses.replace(exact, transitions=tuple(rounded))) > 1e-2


def test_the_law_moves_by_the_rounding_alone() -> None:
    """The ends of bf16 and float32 states, drawn with the same noise, differ by about 2^-8 of their size."""
    a, b = walked(torch.bfloat16).x0, walked(torch.float32).x0
    assert 0 < float((a - b).norm() / b.norm()) < 2**-6


NAMES = ["clipped-pg", "flow-grpo", "mix-grpo", "branch-grpo"]


@pytest.mark.parametrize(("name", "storage"), [*((n, "bf16") for n in NAMES), ("clipped-pg", "fp16")])
def test_a_policy_gradient_starts_at_a_ratio_of_one(name: str, storage: Storage) -> None:
    """At the first update the ratio is 1 and the gap of sampler and trainer 0, both to the bit.

    The whole batch is rolled out and trained at once, so that both passes are the same arithmetic. Without rounding in
    the loop the gap is not 0: ``test_rounding_what_was_sampled_afterwards_is_not``.
    """
    method = METHODS[name](reward=LinearReward([1.0, 0.5]), storage=storage)
    run = tiny_run(method, dtype=torch.float32, ema=None)
    turn = Turn(0, 0, 6)
    batch = method.collect(run.policy, run.prompts.batch(0), run.state, turn)
    assert all(part.tr.x_t.dtype == part.tr.x_s.dtype == STORAGE[storage] for part in batch.parts)
    metrics = iterate(run)
    assert metrics["sampler_gap"] == 0.0 and metrics["ratio_min"] == metrics["ratio_max"] == 1.0
    several = iterate(tiny_run(method, dtype=torch.float32, ema=None, epochs=2))
    assert several["first/ratio_min"] == several["first/ratio_max"] == 1.0
