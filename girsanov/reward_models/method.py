r"""Training a reward model on comparisons: a method of the training loop, whose "policy" is the network that scores.

.. math:: L = \frac{1}{M} \sum_m \ell(r^m_1, ..., r^m_K) + c \, \overline{r^2}

over the M members of an ensemble: their parameters are disjoint, so each has the gradient of its own loss (over M,
which AdamW does not see). The second term centres the scores, of which Bradley-Terry fixes the differences alone; a
small c does not move these where the model has a free constant.

Reference: Eisenstein et al. 2023, arXiv:2312.09244 (centring); Coste et al. 2023, arXiv:2310.02743 (ensembles).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.base import Chunk, Data, Method, State, Turn
from girsanov.policy import Policy
from girsanov.precision import as_wide
from girsanov.preferences.base import Loss
from girsanov.preferences.records import Compared
from girsanov.reward_models.data import ComparedPrompts
from girsanov.reward_models.losses import bradley_terry
from girsanov.types import Batch, Cond, Prompts


@dataclass(frozen=True)
class Scoring:
    """What a policy tunes here: a network ``(x, cond) -> scores [N, M]``."""

    net: Any

    def __call__(self, x: Tensor, cond: Cond | None = None) -> Tensor:
        """Scores [N, M]."""
        return self.net(x, cond)


@dataclass(frozen=True)
class ComparedItems(Batch):
    """Items [B, K, *D] best first, conditions of the B prompts, which items are there and given scores [B, K]."""

    items: Tensor
    cond: Cond
    valid: Tensor
    score: Tensor | None = None


def score_items(net: Any, items: Tensor, cond: Cond | None) -> Tensor:
    """Scores [B, K, M] of items [B, K, *D], one pass."""
    b, k = items.shape[:2]
    each = None if cond is None else cond.take(torch.arange(b, device=cond.index.device).repeat_interleave(k))
    return net(items.flatten(0, 1), each).unflatten(0, (b, k))


@dataclass(frozen=True, kw_only=True)
class RewardModelling(Method):
    """Learns scores from comparisons.

    Attributes:
        loss: of the scores of a prompt's items, best first.
        centre: weight of the mean square of the scores.
    """

    loss: Loss = field(default_factory=bradley_terry)
    centre: float = 0.0

    data: ClassVar[Data] = "pairs"

    def __post_init__(self) -> None:
        if self.centre < 0:
            raise GirsanovError(f"the weight of the centring must be at least 0, not {self.centre}")

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """The comparisons as they are. Raises GirsanovError for a source of something else."""
        if not isinstance(prompts, ComparedPrompts):
            raise GirsanovError("a reward model learns from comparisons: give a Comparisons source")
        items = prompts.items.to(policy.dtype) if prompts.items.is_floating_point() else prompts.items
        there = torch.ones(items.shape[:2], dtype=torch.bool, device=items.device)
        return ComparedItems(items, prompts.cond, there if prompts.valid is None else prompts.valid, prompts.score)

    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """One chunk: all items of the batch are one pass."""
        assert isinstance(batch, ComparedItems)
        scores = score_items(policy.view("current", "train"), batch.items, batch.cond)
        given = None if batch.score is None else batch.score.to(scores.dtype)
        members = [Compared(s, score=given, valid=batch.valid) for s in scores.unbind(2)]
        loss = torch.stack([self.loss(m) for m in members]).mean()
        if self.centre:
            loss = loss + self.centre * scores[batch.valid].square().mean()
        gap = (scores[:, 0] - scores[:, 1]).mean(1).detach()
        yield Chunk(loss, {"accuracy": as_wide(gap > 0).mean(), "gap": gap.mean()})
