r"""RankDPO: a list of images of one prompt, ranked by an annotator, with the weights of a ranking metric.

With ``s = -(B(t) / 2)(e_theta - e_ref)`` and K images, best first,

.. math:: L = - \sum_{i < j} |G_i - G_j| \Big| \frac{1}{D(i)} - \frac{1}{D(j)} \Big| \log\sigma(s_i - s_j), \qquad
    G = 2^\psi - 1,\; D(i) = \log(1 + i)

psi in [0, 1] is the image's probability to be preferred to another of its list, ``mean_j sigma(score_i - score_j)``, so
that gains do not depend on the unit of the scores. Any loss of lists of the core stands in its place:
``plackett-luce``, ``infonca``, ``lipo``, ... (give them ``beta = 1``: B(t) holds the scale). With two images it is
Diffusion-DPO, each pair weighted by how sure the annotator is.

Reference: Karthik et al. 2024, arXiv:2410.18013, Eqs. 6 to 8.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from girsanov.methods.base import Data
from girsanov.methods.preference.base import ErrorPreference, ItemBatch, compared, pair_metrics
from girsanov.methods.preference.noised import Noised, Seen
from girsanov.methods.preference.weights import ConstantWeight, PairWeight
from girsanov.predictions import Prediction
from girsanov.preferences.base import Loss
from girsanov.preferences.pairs import PairLoss
from girsanov.preferences.scores import Score
from girsanov.preferences.weights import RankWeight
from girsanov.processes import Schedule


def win_share(score: Tensor) -> Tensor:
    """``mean_{j != i} sigma(score_i - score_j)`` [B, K]."""
    k = score.shape[1]
    p = torch.sigmoid(score.unsqueeze(2) - score.unsqueeze(1))
    return (p.sum(2) - 0.5) / max(1, k - 1)


@dataclass(frozen=True, kw_only=True)
class RankDPO(ErrorPreference):
    """List-wise preference optimisation.

    Attributes:
        weight: B(t).
        loss: of the core, on the scores of the items.
    """

    weight: PairWeight = ConstantWeight()
    loss: Loss = PairLoss(score=Score(1.0), weight=RankWeight())

    data: ClassVar[Data] = "lists"

    def coefficient(self, c: Schedule, prediction: Prediction, d: int) -> Tensor:
        """B(t)."""
        return self.weight(c, prediction, d)

    def rows(self, now: Seen, base: Seen | None, draw: Noised, batch: ItemBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The core's loss."""
        items = compared(now, base, draw, batch)
        if items.score is not None:
            items = dataclasses.replace(items, score=win_share(items.score.to(items.logp)))
        s = Score(1.0)(items)
        return self.loss.rows(items), pair_metrics(s[:, :-1] - s[:, 1:])
