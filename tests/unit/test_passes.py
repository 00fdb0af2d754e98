"""Counted network passes of the gradient methods: what an iteration costs, and no more."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from girsanov.grids import Grid
from girsanov.methods.adjoint.gauss_newton import GaussNewton
from girsanov.methods.adjoint.matching import AdjointMatching
from girsanov.methods.adjoint.ode import ODEAdjointMatching
from girsanov.methods.base import Method, Turn
from girsanov.methods.direct.gradient import DirectGradient
from girsanov.methods.direct.lv import DRaFTLV
from girsanov.methods.direct.refl import ReFL
from girsanov.methods.direct.truncation import LastK
from girsanov.methods.policy_gradient.steps import Subset
from girsanov.methods.preference import SPO
from girsanov.models import Model
from girsanov.policy import Policy
from girsanov.processes import RectifiedFlow
from girsanov.rewards.base import Reward
from girsanov.samplers import GDDIM, Euler, Heun, MemorylessFlow
from girsanov.types import Cond, Prompts


class Tick(torch.autograd.Function):
    """The identity; counts its backward passes."""

    @staticmethod
    def forward(ctx, x: Tensor, counter: "Counter", kind: str) -> Tensor:
        ctx.counter, ctx.kind = counter, kind
        return x.view_as(x)

    @staticmethod
    def jvp(ctx, tangent: Tensor, *rest: None) -> Tensor:
        return tangent.view_as(tangent)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None, None]:
        ctx.counter.back[ctx.kind] += 1
        return g, None, None


@dataclass
class Counter:
    """Samples that went through, by kind of pass, in units of the batch."""

    batch: int

    def __post_init__(self) -> None:
        self.forth = dict.fromkeys(("free", "reference", "trained", "reward", "decoder"), 0)
        self.back = dict(self.forth)

    def enter(self, x: Tensor, kind: str) -> None:
        self.forth[kind] += len(x) // self.batch

    def through(self, x: Tensor, kind: str) -> Tensor:
        self.enter(x, kind)
        return Tick.apply(x, self, kind)


class Net(nn.Module):
    def __init__(self, counter: Counter) -> None:
        super().__init__()
        self.counter, self.inner, self.outer = counter, nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        tuned = self.outer.weight.requires_grad
        kind = "free" if tuned and not torch.is_grad_enabled() else "trained" if tuned else "reference"
        self.counter.enter(x, kind)  # before the layers: a recomputation stops once it has what it needs
        return Tick.apply(self.outer(torch.tanh(self.inner(torch.cat([x, t[:, None]], 1)))), self.counter, kind)


class Counted(Reward):
    name, differentiable = "counted", True

    def __init__(self, counter: Counter) -> None:
        self.counter = counter

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        return -self.counter.through(x, "reward").square().sum(1)


def count(make, guidance: dict[str, float] | None = None, group: int = 1, **parts) -> tuple[Counter, int]:
    """Passes of one collect and one losses, and the number of chunks; groups of 1 or 3 samples."""
    counter = Counter(3)
    index = torch.zeros(3, dtype=torch.int64)
    null = Cond({"label": torch.zeros(1)}, index)
    prompts = Prompts(Cond({}, index, null), torch.arange(3), torch.arange(3) // group)
    prompts = dataclasses.replace(prompts, cond=Cond({"label": torch.zeros(1)}, index, prompts.cond.null))
    model = Model(Net(counter), RectifiedFlow(), "velocity", (2,), decode=lambda x: counter.through(x, "decoder"))
    policy = Policy(model, guidance)
    method: Method = make(reward=Counted(counter), **parts)
    state = method.setup(policy)
    batch = method.collect(policy, prompts, state, Turn(0, 0))
    chunks = 0
    for chunk in method.losses(policy, batch, state):
        chunk.loss.backward()
        chunks += 1
    return counter, chunks


N, GRID = 6, Grid.uniform(6)


@pytest.mark.parametrize("last", [None, 3, 1])
@pytest.mark.parametrize(("sampler", "stages"), [(Euler(), 1), (GDDIM(0.0), 1), (Heun(), 2)], ids=repr)
def test_ode_am_costs_what_it_says(sampler, stages: int, last: int | None) -> None:
    """Euler: N, K, K and one of reward and decoder; Heun: 2N, 2K, 2K. One VJP less: nobody asks for a_N-K."""
    c, chunks = count(ODEAdjointMatching, sampler=sampler, grid=GRID, last=last)
    k = N if last is None else last
    assert c.forth == {"free": stages * N, "reference": stages * k, "trained": stages * k, "reward": 1, "decoder": 1}
    assert c.back == {"free": 0, "reference": stages * k - 1, "trained": stages * k, "reward": 1, "decoder": 1}
    assert chunks == stages * k


def test_guidance_doubles_the_passes_of_its_use() -> None:
    every = {"rollout": 2.0, "adjoint": 2.0, "train": 2.0}
    c, _ = count(ODEAdjointMatching, every, grid=GRID, last=2)
    assert c.forth == {"free": 2 * N, "reference": 4, "trained": 4, "reward": 1, "decoder": 1}
    c, _ = count(ODEAdjointMatching, {"rollout": 2.0}, grid=GRID, last=2)
    assert c.forth == {"free": 2 * N, "reference": 2, "trained": 2, "reward": 1, "decoder": 1}
    # guided alone in the adjoint: the loss needs the unguided reference besides
    c, _ = count(ODEAdjointMatching, {"adjoint": 2.0}, grid=GRID, last=2)
    assert c.forth == {"free": N, "reference": 4 + 2, "trained": 2, "reward": 1, "decoder": 1}


def test_adjoint_matching_costs_what_it_says() -> None:
    c, chunks = count(AdjointMatching, sampler=GDDIM(1.0), grid=GRID)  # the last step has no noise: no loss, one VJP
    assert c.forth == {"free": N, "reference": N, "trained": N - 1, "reward": 1, "decoder": 1} and chunks == N - 1
    assert c.back["reference"] == N - 1
    c, chunks = count(AdjointMatching, sampler=MemorylessFlow(), grid=GRID, noiseless_last=True)
    assert c.forth == {"free": N, "reference": N, "trained": N, "reward": 1, "decoder": 1} and chunks == N
    c, _ = count(AdjointMatching, sampler=MemorylessFlow(), grid=GRID, steps=Subset(0, 2))
    assert c.forth == {"free": N, "reference": 2, "trained": 2, "reward": 1, "decoder": 1}
    assert c.back == {"free": 0, "reference": 1, "trained": 2, "reward": 1, "decoder": 1}


def test_adjoint_matching_guided_in_the_rollout_alone() -> None:
    c, _ = count(AdjointMatching, {"rollout": 3.0}, sampler=MemorylessFlow(), grid=GRID)
    assert c.forth == {"free": 2 * N, "reference": N, "trained": N, "reward": 1, "decoder": 1}


def test_gauss_newton_costs_what_it_says() -> None:
    """n = 2 steps, Euler, K = 3: passes of pulls and pushes, the corrected path and the current control."""
    c, _ = count(ODEAdjointMatching, grid=GRID, last=3, target=GaussNewton(steps=2))
    assert c.forth["free"] == N + 3 and c.forth["trained"] == 3
    assert c.forth["reference"] == 3 * (2 * 4 + 2)
    assert c.back["reference"] == 4 * (3 - 1)


def test_direct_gradients_cost_what_they_say() -> None:
    for k in (1, 4, N):
        c, chunks = count(DirectGradient, sampler=GDDIM(1.0), grid=GRID, truncation=LastK(k))
        assert c.forth == {"free": N - k, "reference": 0, "trained": k, "reward": 1, "decoder": 1} and chunks == 1
        assert c.back == {"free": 0, "reference": 0, "trained": k, "reward": 1, "decoder": 1}
    c, _ = count(DirectGradient, grid=GRID, truncation=LastK(4), checkpoint=True)
    assert c.forth["trained"] == 2 * 4
    c, chunks = count(DRaFTLV, grid=GRID, copies=2)
    assert c.forth == {"free": N, "reference": 0, "trained": 2, "reward": 2, "decoder": 2} and chunks == 2
    c, _ = count(ReFL, grid=GRID, truncation=LastK(2))
    assert c.forth == {"free": N - 2, "reference": 0, "trained": 1, "reward": 1, "decoder": 1}


def test_candidates_of_a_state_are_one_pass() -> None:
    """SPO asks the network once a state, whatever k is."""
    for k in (2, 5):
        c, chunks = count(SPO, group=3, grid=GRID, k=k, skip=0.0)
        assert c.forth == {"free": N, "reference": N - 1, "trained": N - 1, "reward": 1, "decoder": 1}
        assert c.back["trained"] == N - 1 and chunks == N  # a chunk of the preference model
    c, _ = count(SPO, {"rollout": 2.0, "train": 2.0}, group=3, grid=GRID, skip=0.5)
    assert c.forth["free"] == 2 * N and c.forth["reference"] == c.forth["trained"] == 2 * 2
