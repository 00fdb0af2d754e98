r"""Several rewards as one: ``r(x) = \sum_j w_j r_j(x)``, with the scores of every part kept.

The sum is what differentiable methods climb. Methods that normalise advantages read the parts instead
(``scores``, [B, R]): rewards on different scales are then normalised within their group first and weighted after.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.rewards import scores as columns
from girsanov.rewards.base import Reward
from girsanov.types import Prompts


class WeightedSum(Reward):
    """``sum_j w_j r_j``; differentiable if all its parts are.

    Args:
        parts: the rewards, each under the name that metrics call it.
        weights: a number for each part (1 each by default); a negative one penalises.
        name: what messages call the sum.

    Raises GirsanovError on no parts, weights for other names, or a weight that is not finite.
    """

    def __init__(
        self, parts: Mapping[str, Reward], weights: Mapping[str, float] | None = None, name: str = "sum"
    ) -> None:
        given = dict.fromkeys(parts, 1.0) if weights is None else dict(weights)
        if not parts:
            raise GirsanovError("a sum of rewards needs at least one reward")
        if set(given) != set(parts):
            raise GirsanovError(
                f"the weights are for {', '.join(sorted(given)) or 'nothing'} and the rewards are "
                f"{', '.join(sorted(parts))}: give one weight a reward"
            )
        self.parts = dict(parts)
        # a part that is a sum itself brings its own columns
        self.names = tuple(
            key if len(columns.names(part)) == 1 else f"{key}/{inner}"
            for key, part in self.parts.items()
            for inner in columns.names(part)
        )
        self.weights = torch.cat([given[key] * columns.weights(part) for key, part in self.parts.items()])
        if not bool(self.weights.isfinite().all()):
            raise GirsanovError("the weights of a sum of rewards must be finite numbers")
        self.name = name
        self.differentiable = all(part.differentiable for part in self.parts.values())

    def submit(self, x: Tensor, prompts: Prompts) -> columns.Pending:
        """Starts scoring every part; the result is [B, R]. Parts that score in the background start first."""
        started = {k: columns.submit(p, x, prompts) for k, p in self.parts.items() if hasattr(p, "submit")}
        here = {k: columns.submit(p, x, prompts) for k, p in self.parts.items() if k not in started}
        both: Mapping[str, columns.Pending] = started | here
        return columns.SideBySide([both[k] for k in self.parts])

    def scores(self, x: Tensor, prompts: Prompts) -> Tensor:
        """The scores of every part, [B, R]."""
        return self.submit(x, prompts).result()

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """The weighted sum, [B]."""
        return total(self.scores(x, prompts), self.weights)


def total(scores: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum [B] of scores [B, R]."""
    return scores @ weights.to(scores)
