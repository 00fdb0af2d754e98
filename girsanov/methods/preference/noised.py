"""Items noised together: one time and one noise for all K items of a prompt, and their denoising errors.

The noise is shared because it would hide what tells the items apart (``weights.py`` says how much it would cost). The
errors are squared errors of the network's own prediction (eps, velocity, ...), summed over the data dimensions; the K
items of all prompts are one network pass.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.grids import Grid
from girsanov.methods.forward.times import Times
from girsanov.models import ModelLike
from girsanov.noise import Noise
from girsanov.predictions import Prediction, combine, row
from girsanov.processes import Schedule
from girsanov.reductions import square_distance
from girsanov.types import Cond

Coefficient = Callable[[Schedule, Prediction, int], Tensor]
"""B of a schedule, a prediction and the number of data dimensions, float64 of the shape of the schedule."""


@dataclass(frozen=True)
class Seen:
    """What a model says of a draw: predictions [B, K, *D] and squared errors summed over the data, float64 [B, K]."""

    prediction: Tensor
    error: Tensor


@dataclass(frozen=True)
class Noised:
    """A draw: every item of every prompt, noised.

    Attributes:
        x, target: noised items and what their predictions should be, [B, K, *D].
        t: times, float64 [B].
        weight: B(t), float64 [B].
        base: errors under the reference if they are known, float64 [B, K].
        baseline: a number that belongs to the whole batch, [B] copies of it (KTO's z).
    """

    x: Tensor
    target: Tensor
    t: Tensor
    weight: Tensor
    base: Tensor | None = None
    baseline: Tensor | None = None

    @classmethod
    def of(
        cls, model: ModelLike, items: Tensor, source: Noise, times: tuple[Times, int, int, Grid], weight: Coefficient
    ) -> "Noised":
        """Items [B, K, *D] with the next times and noise of a source; ``times`` is (law, draw k, of n, grid)."""
        law, k, n, grid = times
        t = law(source.uniform(), k, n, grid)
        eps, c = source(items[:, 0]), model.process(t)
        ab, sides = row(c, model.prediction), items.unbind(1)
        x = torch.stack([combine(one, eps, c.alpha, c.sigma) for one in sides], 1)
        target = torch.stack([combine(one, eps, *ab) for one in sides], 1)
        return cls(x, target, t, weight(c, model.prediction, items[0, 0].numel()))

    def take(self, index: Tensor) -> "Noised":
        """The chosen prompts."""
        parts = (self.x, self.target, self.t, self.weight, self.base, self.baseline)
        return Noised(*(None if p is None else p[index] for p in parts))  # type: ignore[arg-type]

    def look(self, model: ModelLike, cond: Cond) -> Seen:
        """Predictions and errors of a model; one network pass."""
        b, k = self.x.shape[:2]
        n = torch.arange(b, device=cond.index.device).repeat(k)
        flat = self.x.transpose(0, 1).flatten(0, 1)
        p = model(flat, self.t.repeat(k), cond.take(n))
        error = square_distance(p, self.target.transpose(0, 1).flatten(0, 1).to(p))
        return Seen(p.unflatten(0, (k, b)).transpose(0, 1), error.unflatten(0, (k, b)).T)
