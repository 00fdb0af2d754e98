"""A policy that can hold any affine control, with per-sample times: the exact network plus a correction for each time
of a grid. What the tests of sampled methods (policy gradient, forward process, preference) share."""

import torch
from torch import Tensor, nn

from girsanov.bench.training import BatchTurn
from girsanov.grids import Grid
from girsanov.methods import Method
from girsanov.methods.base import Turn
from girsanov.models import Model
from girsanov.policy import Policy
from girsanov.problems import Gaussian
from girsanov.types import Batch, Cond, Prompts

F64 = torch.float64


class Correction(nn.Module):
    """``net(x, t) + c[k] + M[k] x`` with k the grid time nearest to t; starts at 0."""

    def __init__(self, model: Model, grid: Grid) -> None:
        super().__init__()
        d = torch.Size(model.shape).numel()
        self.exact, self.ts = model.net, grid.ts
        self.c = nn.Parameter(torch.zeros(len(grid.ts), d, dtype=F64))
        self.M = nn.Parameter(torch.zeros(len(grid.ts), d, d, dtype=F64))

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        k = (t.double().unsqueeze(1) - self.ts).abs().argmin(1)
        move = self.c[k] + torch.einsum("bij,bj->bi", self.M[k], x.flatten(1).to(self.M.dtype))
        return self.exact(x, t, cond) + move.view_as(x).to(x.dtype)


def tunable(model: Model, grid: Grid, scale: float = 0.0, seed: int = 0, slope: bool = True) -> Policy:
    """A policy whose reference is the given model; with a scale its weights have moved away from it.

    Without ``slope`` the correction is a shift alone.
    """
    net = Correction(model, grid)
    net.M.requires_grad_(slope)
    policy = Policy(Model(net, model.process, model.prediction, model.shape))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(scale * torch.randn(p.shape, dtype=p.dtype, generator=g))
    return policy


def requests(n: int, group_size: int | None = None, first: int = 0) -> Prompts:
    """n requests without conditions, in groups of ``group_size`` (all in one by default)."""
    ids = torch.arange(first, first + n)
    group = torch.zeros_like(ids) if group_size is None else ids // group_size
    return Prompts(Cond({}, torch.zeros_like(ids)), ids, group)


class Source:
    """The same requests in every iteration."""

    def __init__(self, n: int, group_size: int | None = None) -> None:
        self.n, self.group_size = n, group_size

    def batch(self, iteration: int, rank: int, world_size: int) -> Prompts:
        return requests(self.n, self.group_size, rank * self.n)


def gradient(policy: Policy, method: Method, batch: Batch, state: dict | None = None) -> Tensor:
    """The gradient of a batch's loss in all trainable parameters, flat."""
    total = sum(chunk.loss for chunk in method.losses(policy, batch, state or {}))
    grads = torch.autograd.grad(total, policy.parameters(), allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in grads])


class FastTurn(BatchTurn):
    """An iteration whose noise is drawn for the whole batch at once: the same law as ``Noise``, much faster."""


def descend(policy: Policy, method: Method, prompts: Prompts, iterations: int, lr: float, tail: int) -> None:
    """Adam at a cosine rate; leaves the mean of the last ``tail`` iterates as the view "ema"."""
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    state, names = method.setup(policy), policy.names
    sums = [torch.zeros_like(p) for p in policy.parameters()]
    for i in range(iterations):
        batch = method.collect(policy, prompts, state, FastTurn(0, i, iterations))
        for chunk in method.losses(policy, batch, state):
            chunk.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if i >= iterations - tail:
            for total, p in zip(sums, policy.parameters(), strict=True):
                total.add_(p.detach(), alpha=1 / tail)
    policy.copies["ema"] = dict(zip(names, sums, strict=True))


def collect(method: Method, policy: Policy, prompts: Prompts, turn: Turn | None = None) -> Batch:
    """A batch of an iteration (the first by default), with a state of its own."""
    return method.collect(policy, prompts, method.setup(policy), turn or Turn(0, 0))


PLANE = Gaussian([0.8, -0.4], [[1.3, 0.5], [0.5, 0.7]])
"""Two dimensions, full covariance."""
