"""The pairs of a batch of compared items: every better item with every worse one, as columns.

K items, best first, make ``P = K (K - 1) / 2`` pairs: (0, 1), (0, 2), ..., (1, 2), ... A pair of which one item is not
there does not count.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.preferences.records import Compared


@dataclass(frozen=True)
class Pairing:
    """Pairs of a batch.

    Attributes:
        batch: the items.
        s: their scores under the policy, [B, K].
        beta: the scale of the scores.
        better, worse: the columns of each pair, int64 [P].
    """

    batch: Compared
    s: Tensor
    beta: float
    better: Tensor
    worse: Tensor

    @classmethod
    def of(cls, batch: Compared, s: Tensor, beta: float) -> "Pairing":
        """All pairs of the items. Raises GirsanovError if there is one item a prompt."""
        if batch.items < 2:
            raise GirsanovError("a loss of pairs needs at least two items a prompt, best first")
        better, worse = torch.triu_indices(batch.items, batch.items, 1, device=s.device)
        return cls(batch, s, beta, better, worse)

    @property
    def gap(self) -> Tensor:
        """``s_w - s_l``, [B, P]."""
        return self.s[:, self.better] - self.s[:, self.worse]

    @property
    def there(self) -> Tensor:
        """Which pairs count, bool [B, P]."""
        there = self.batch.there
        return there[:, self.better] & there[:, self.worse]

    def sides(self, name: str) -> tuple[Tensor, Tensor]:
        """A field of the better and of the worse items, [B, P] each."""
        value = self.batch.need(name)
        return value[:, self.better], value[:, self.worse]

    @property
    def score_gap(self) -> Tensor:
        """Difference of the annotator's scores, [B, P]."""
        better, worse = self.sides("score")
        return better - worse
