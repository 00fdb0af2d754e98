"""What the law tests of methods share: a field that is affine in the state with weights of its own at every grid time,
noise with exact moments, and a regression that is solved instead of descended.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from girsanov.grids import Grid
from girsanov.methods.adjoint.base import AdjointBatch
from girsanov.methods.base import Method, Turn
from girsanov.models import Model
from girsanov.policy import Policy
from girsanov.types import Cond, Prompts

F64 = torch.float64


class Affine(nn.Module):
    """``base(x, t) + W_k x + c_k`` with weights of their own at every time of a grid, float64; zero at first."""

    def __init__(self, base: Model, grid: Grid) -> None:
        super().__init__()
        self.base, self.times = base, grid.ts
        self.weight = nn.Parameter(torch.zeros(len(grid.ts), *base.shape, base.shape[0] + 1, dtype=F64))

    def at(self, t: Tensor) -> int:
        """The index of a grid time."""
        gap, k = (self.times - t.double()).abs().min(0)
        assert gap < 1e-12
        return int(k)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return self.base.net(x, t, cond) + lift(x) @ self.weight[self.at(t[0])].T


def lift(x: Tensor) -> Tensor:
    """``(x, 1)``, [B, d + 1]."""
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)


def affine_policy(base: Model, grid: Grid, seed: int | None = None, size: float = 0.3) -> Policy:
    """A policy whose reference is the base model; with a seed the current weights have moved away from it."""
    policy = Policy(dataclasses.replace(base, net=Affine(base, grid)))
    if seed is not None:
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in policy.parameters():
                p.add_(size * torch.randn(p.shape, dtype=p.dtype, generator=g))
    return policy


def requests(n: int) -> Prompts:
    """n unconditional requests."""
    index = torch.arange(n)
    return Prompts(Cond({}, torch.zeros_like(index)), index, index)


class SigmaPoints:
    """``+- sqrt(n) e_j`` for each of the n coordinates of all draws: mean 0 and covariance I exactly, 2n samples.

    Regressions of affine functions on affine functions of these are those of the population.
    """

    def __init__(self, d: int, draws: int) -> None:
        n = d * draws
        points = n**0.5 * torch.eye(n, dtype=F64)
        self.draws = iter(torch.cat([points, -points]).view(2 * n, draws, d).unbind(1))

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype = F64) -> Tensor:
        """The next draw."""
        return next(self.draws)

    def __call__(self, like: Tensor) -> Tensor:
        """The next draw."""
        return next(self.draws)


@dataclasses.dataclass(frozen=True)
class ExactTurn(Turn):
    """An iteration whose noise are sigma points for d dimensions and a number of draws."""

    d: int = 1
    draws: int = 1

    @property
    def samples(self) -> int:
        """Number of samples the noise is for."""
        return 2 * self.d * self.draws

    def noise(self, ids: Tensor, stream: int = 0) -> SigmaPoints:  # type: ignore[override]
        """The same points every time."""
        return SigmaPoints(self.d, self.draws)


def solve(method: Method, policy: Policy, turn: ExactTurn, iterations: int, damping: float) -> None:
    """Damped population iteration: collects targets and moves the affine weights towards their exact regression."""
    net = policy.net
    assert isinstance(net, Affine)
    for _ in range(iterations):
        batch = method.collect(policy, requests(turn.samples), {}, turn)
        assert isinstance(batch, AdjointBatch)
        with torch.no_grad():
            for target in batch.targets:
                found = torch.linalg.lstsq(lift(target.x), target.control).solution.T
                weight = net.weight[net.at(target.t)]
                weight.add_(found - weight, alpha=damping)


def gradients(method: Method, policy: Policy, batch: object) -> list[Tensor]:
    """The gradient of the method's whole loss in every trainable parameter."""
    total = sum(chunk.loss for chunk in method.losses(policy, batch, {}))
    return list(torch.autograd.grad(total, policy.parameters(), allow_unused=True, materialize_grads=True))


def close(found: Sequence[Tensor] | Tensor, wanted: Sequence[Tensor] | Tensor, tolerance: float) -> None:
    """Asserts that tensors differ by less than the tolerance, relative to the larger of 1 and their size."""
    pairs = zip([found], [wanted], strict=True) if isinstance(found, Tensor) else zip(found, wanted, strict=True)
    for a, b in pairs:
        gap = (a - b).abs().max() / b.abs().max().clamp_min(1.0)
        assert gap < tolerance, f"differs by {float(gap):.2e}, allowed {tolerance:.0e}"
