"""What forward-process methods train on: samples noised to random times, with their regression targets."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from girsanov.methods.advantages.scoring import reward_metrics
from girsanov.predictions import combine
from girsanov.processes import Process
from girsanov.types import Batch, Cond


@dataclass(frozen=True)
class Draw:
    """Every sample once, noised.

    Attributes:
        x: noised samples, [B, *D].
        t: their times, float64 [B].
        target: u, [B, *D].
        lever: ``sigma / W``: the error of x_0 per error of the velocity, float64 [B].
        note: a number a sample that a method took down when the draw was made, [B].
    """

    x: Tensor
    t: Tensor
    target: Tensor
    lever: Tensor
    note: Tensor | None = None

    @classmethod
    def of(cls, process: Process, x0: Tensor, t: Tensor, eps: Tensor) -> "Draw":
        """Samples x0 [B, *D] noised with eps [B, *D] to the times t [B]."""
        c = process(t)
        return cls(combine(x0, eps, c.alpha, c.sigma), t, combine(x0, eps, c.d_alpha, c.d_sigma), c.sigma / c.wronskian)

    def take(self, index: Tensor) -> "Draw":
        """The chosen samples."""
        parts = (self.x, self.t, self.target, self.lever, self.note)
        return Draw(*(None if p is None else p[index] for p in parts))  # type: ignore[arg-type]


@dataclass(frozen=True)
class ForwardBatch(Batch):
    """Rewards [B], advantages [B], which samples carry a signal (bool [B]), conditions, and the draws."""

    reward: Tensor
    advantage: Tensor
    mask: Tensor
    cond: Cond
    draws: tuple[Draw, ...]

    def metrics(self) -> dict[str, Tensor | float]:
        """Mean and spread of the reward, and the share of samples without a signal."""
        return reward_metrics(self.reward, self.mask)

    def with_notes(self, notes: Sequence[Tensor]) -> "ForwardBatch":
        """The same batch with a note for every draw."""
        draws = [dataclasses.replace(d, note=note) for d, note in zip(self.draws, notes, strict=True)]
        return dataclasses.replace(self, draws=tuple(draws))
