r"""Several rewards as one: ``r(x) = \sum_j w_j r_j(x)``, with the scores of every part kept.

The sum is what differentiable methods climb. Methods that normalise advantages read the parts instead
(``scores``, [B, R]): rewards on different scales are then normalised within their group first and weighted after.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.rewards import scores as columns
from girsanov.rewards.base import Reward
from girsanov.rewards.function import as_reward
from girsanov.types import Prompts


class WeightedSum(Reward):
    """``sum_j w_j r_j``; differentiable if all its parts are.

    Args:
        parts: the rewards.
        weights: a number for each part (1 each by default); a negative one penalises.
        name: what messages call the sum.

    Raises GirsanovError on no parts, another number of weights, or a weight that is not finite.
    """

    def __init__(self, parts: Sequence[Reward], weights: Sequence[float] | None = None, name: str = "sum") -> None:
        if not parts:
            raise GirsanovError("a sum of rewards needs at least one reward")
        self.parts = tuple(as_reward(part) for part in parts)
        self.weights = (1.0,) * len(parts) if weights is None else tuple(float(w) for w in weights)
        if len(self.weights) != len(parts):
            raise GirsanovError(f"{len(self.weights)} weights for {len(parts)} rewards: give one weight a reward")
        if not all(math.isfinite(w) for w in self.weights):
            raise GirsanovError("the weights of a sum of rewards must be finite numbers")
        self.name = name

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Whether all parts are."""
        return all(part.differentiable for part in self.parts)

    def prepare(self, device: torch.device | str = "cpu") -> None:
        """Every part, one after the other."""
        for part in self.parts:
            part.prepare(device)

    @property
    def column_weights(self) -> Tensor:
        """The weight of each column of ``scores``, float64 [R]; a part that is a sum itself brings its own columns."""
        return torch.cat([w * columns.weights(part) for w, part in zip(self.weights, self.parts, strict=True)])

    @property
    def column_names(self) -> tuple[str, ...]:
        """The name of each column of ``scores``."""
        return tuple(name for part in self.parts for name in columns.names(part))

    def submit(self, x: Tensor, prompts: Prompts) -> columns.Pending:
        """Starts scoring every part; the result is [B, R]. Parts that score in the background start first."""
        order = sorted(range(len(self.parts)), key=lambda j: not hasattr(self.parts[j], "submit"))
        started = {j: columns.submit(self.parts[j], x, prompts) for j in order}
        return columns.SideBySide([started[j] for j in range(len(self.parts))])

    def scores(self, x: Tensor, prompts: Prompts) -> Tensor:
        """The scores of every part, [B, R]."""
        return self.submit(x, prompts).result()

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """The weighted sum, [B] in the dtype of x."""
        return total(self.scores(x, prompts).to(x.dtype), self.column_weights)


def total(scores: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum [B] of scores [B, R]."""
    return scores @ weights.to(scores)
