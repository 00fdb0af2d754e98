"""What a loss of preferences is: a composition of frozen parts that gives one number a prompt.

    items (what was sampled -> what is compared) -> loss.rows(batch) -> mean
    moves (where the reference goes during training), strength (how far the tuned weights are extrapolated at the end)

``rows`` is a pure function of the record: no state, no randomness, no framework. ``items``, ``moves`` and ``strength``
say what a training loop does around it; they are facts of a method (RSO, TR-DPO, ExPO), and nothing here reads them.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from girsanov.preferences.moves import Fixed, Moves
from girsanov.preferences.records import Compared
from girsanov.preferences.selection import AsGiven, Selection


@dataclass(frozen=True, kw_only=True)
class Loss(ABC):
    """A loss of compared items.

    Attributes:
        items: how sampled and scored items become compared ones.
        moves: how the reference moves.
        strength: at which strength of the tuning the policy is used: ``ref + strength (tuned - ref)``.
    """

    items: Selection = AsGiven()
    moves: Moves = Fixed()
    strength: float = 1.0

    @abstractmethod
    def rows(self, batch: Compared) -> Tensor:
        """The loss of every prompt, [B]."""

    def __call__(self, batch: Compared) -> Tensor:
        """The mean loss, scalar."""
        return self.rows(batch).mean()
