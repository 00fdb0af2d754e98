"""A bandit with a handful of arms: every loss's population value by enumeration, and its minimum."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from girsanov.preferences import Compared
from girsanov.preferences.base import Loss

F64 = torch.float64
REF = torch.tensor([0.5, 0.3, 0.2], dtype=F64).log()
UNIFORM = torch.full((3,), 1 / 3, dtype=F64).log()
REWARD = torch.tensor([0.0, 1.0, 2.0], dtype=F64)
LENGTH = torch.tensor([3.0, 5.0, 4.0], dtype=F64)

Batch = Callable[[Tensor], tuple[Compared, Tensor]]
"""``batch(log pi [n]) -> (items, probability of each row)``."""


def preference(reward: Tensor = REWARD) -> Tensor:
    """``P(i > j)``, Bradley-Terry."""
    return torch.sigmoid(reward.unsqueeze(1) - reward)


def pairs(ref: Tensor = REF, wins: Tensor | None = None, flip: float = 0.0, **more: Tensor) -> Batch:
    """All ordered pairs of different arms, each as often as an annotator would give it; ``more`` [n] are fields."""
    p = preference() if wins is None else wins
    p = (1 - flip) * p + flip * p.T
    n = len(ref)
    index = torch.tensor([(i, j) for i in range(n) for j in range(n) if i != j])
    weight = p[index[:, 0], index[:, 1]] / (n * (n - 1) / 2)

    def batch(log_pi: Tensor) -> tuple[Compared, Tensor]:
        fields = {k: v[index] for k, v in more.items() if v.ndim == 1}
        rows = {k: v.expand(len(index)) for k, v in more.items() if v.ndim == 0}
        return Compared(log_pi[index], ref[index], **fields, **rows), weight

    return batch


def lists(ref: Tensor, rows: Sequence[tuple[int, ...]], weight: Tensor, **more: Tensor) -> Batch:
    """Lists of arms with probabilities."""
    index = torch.tensor(rows)

    def batch(log_pi: Tensor) -> tuple[Compared, Tensor]:
        return Compared(log_pi[index], ref[index], **{k: v[index] for k, v in more.items()}), weight

    return batch


def population(loss: Loss, batch: Batch, log_pi: Tensor) -> Tensor:
    """The expected loss."""
    items, weight = batch(log_pi)
    return (loss.rows(items) * weight).sum()


def minimum(loss: Loss, batch: Batch, start: Tensor | None = None, arms: int = 3) -> Tensor:
    """The policy [n] that minimises the expected loss: Newton's method by L-BFGS in float64."""
    theta = (torch.zeros(arms, dtype=F64) if start is None else start.clone()).requires_grad_(True)
    solver = torch.optim.LBFGS(
        [theta], max_iter=200, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        value = population(loss, batch, theta.log_softmax(0))
        value.backward()
        return value

    for _ in range(3):
        solver.step(closure)
        if float(theta.grad.abs().max()) < 1e-11:
            break
    return theta.detach().softmax(0)


def normalised(f: Callable[[float], Tensor], low: float, high: float) -> Tensor:
    """The policy ``f(c)`` that adds up to 1, by bisection in c (the sum increases)."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float(f(middle).sum()) < 1 else (low, middle)
    return f((low + high) / 2)
