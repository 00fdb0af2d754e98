r"""MaPO: a margin between two images and the likelihood of the better one, without a reference.

With mean squared errors e of the prediction and a scale k,

.. math:: L = E\big[ e^w - \beta \log \sigma\big( T (\phi(e^w) - \phi(e^l)) \big) \big], \qquad \phi(e) = \frac{k
e}{\exp(k e) - 1}

It is ORPO's shape (imitation of the winner and a margin) with errors for log-probs. With ``p = exp(-k e)``, phi is ``-p
\log p / (1 - p)``: 1 for a perfect prediction, falling to 0, of slope -k/2 at first. ORPO's own odds ``log p / (1 -
p)`` have no bound at e = 0; phi and the factor T, the number of training steps, are those of the public code (k = 0.5
and beta = 0.1 as remembered).

At equal small errors the margin adds ``beta k T / 4`` of the *difference* of the two gradients to the winner's own, so
MaPO pulls away from the loser and the winner's imitation never ends. Nothing holds it to the pretrained model but the
data.

Reference: Hong et al. 2024, arXiv:2406.06424, and its code in diffusers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.base import Data
from girsanov.methods.preference.base import ErrorPreference, ItemBatch, pair_metrics
from girsanov.methods.preference.noised import Noised, Seen
from girsanov.preferences.links import Link, Logistic


def margin_score(e: Tensor, scale: float) -> Tensor:
    """``k e / (exp(k e) - 1)``, 1 at e = 0, finite for large e."""
    x = (scale * e).clamp(1e-9, 60.0)
    return x / torch.expm1(x)


@dataclass(frozen=True, kw_only=True)
class MaPO(ErrorPreference):
    """Margin-aware preference optimisation.

    Attributes:
        beta: weight of the margin.
        scale: k.
        horizon: T.
        link: what is done with the margin.
    """

    beta: float = 0.1
    scale: float = 0.5
    horizon: float = 1000.0
    link: Link = Logistic()

    data: ClassVar[Data] = "pairs"
    compares: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (self.beta > 0 and self.scale > 0 and self.horizon > 0):
            raise GirsanovError(
                f"beta, scale and horizon of MaPO must be positive, not {self.beta}, {self.scale} and {self.horizon}"
            )

    def rows(self, now: Seen, base: Seen | None, draw: Noised, batch: ItemBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """``e_w + beta f(T (phi_w - phi_l))``."""
        e = now.error / draw.x[0, 0].numel()
        score = margin_score(e, self.scale)
        h = self.horizon * (score[:, 0] - score[:, 1])
        return e[:, 0] + self.beta * self.link(h), pair_metrics(h)
