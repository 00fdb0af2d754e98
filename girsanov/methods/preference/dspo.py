r"""DSPO: the score of the law of preferred images, matched directly.

The wanted score is that of the winners, tilted by the preference: with the implicit reward ``r = log(p_theta / p_ref)``
and ``P(w preferred) = sigma(h)``,

.. math:: \nabla \log p(x^w) + \gamma \nabla_{x^w} \log\sigma(h) = \nabla \log p(x^w) + \gamma\, \sigma(-h)\,
    (s_\theta - s_{ref})(x^w)

Matching it with the network's own prediction p (target u, an affine image of the score) is

.. math:: L = E\Big[ \tfrac1d \big| p_\theta - u - \kappa\, (p_\theta - p_{ref}) \big|^2 \Big](x^w), \qquad
    \kappa = \gamma\, sg(\sigma(-h))

h is Diffusion-DPO's logit. For a fixed kappa below 1 the minimum is ``p_ref + (\hat u - p_ref) / (1 - kappa)``, ``\hat
u = E[u | x^w]``: winners imitated, and overshot by ``1 / (1 - kappa)``. gamma = 0 is supervised fine-tuning on the
winners. (kappa stays below gamma, which must therefore lie below 1.)

Public code for SD1.5 (in that of arXiv:2511.03317) has the same square with ``gamma = beta``, thousands, and lets the
gradient into the sigmoid. With kappa fixed above 1 the minimum lies on the *other* side of ``p_ref`` than the winners;
what that code converges to is not derived here, and gamma stays below 1.

Reference: Zhu et al., Direct score preference optimization, ICLR 2025 (reconstructed from its idea); the logit: Wallace
et al. 2023, arXiv:2311.12908.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.base import Data
from girsanov.methods.preference.base import ErrorPreference, ItemBatch, compared, pair_metrics
from girsanov.methods.preference.noised import Noised, Seen
from girsanov.methods.preference.weights import ConstantWeight, PairWeight
from girsanov.predictions import Prediction
from girsanov.preferences.pairs import PairLoss
from girsanov.preferences.scores import Score
from girsanov.processes import Schedule
from girsanov.reductions import square_distance


@dataclass(frozen=True, kw_only=True)
class DSPO(ErrorPreference):
    """Direct score preference optimisation.

    Attributes:
        weight: B(t) of the logit.
        gamma: how far the preference moves the target.
    """

    weight: PairWeight = ConstantWeight()
    gamma: float = 0.5

    data: ClassVar[Data] = "pairs"

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < 1:
            raise GirsanovError(f"gamma must lie in [0, 1), or the loss has no minimum, not {self.gamma}")

    def coefficient(self, c: Schedule, prediction: Prediction, d: int) -> Tensor:
        """B(t)."""
        return self.weight(c, prediction, d)

    def rows(self, now: Seen, base: Seen | None, draw: Noised, batch: ItemBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The mean square of the winner's residual."""
        assert base is not None
        loss = PairLoss(score=Score(1.0))
        h = loss.logits(loss.pairing(compared(now, base, draw, batch)))[:, 0].detach()
        p, old, target = now.prediction[:, 0], base.prediction[:, 0], draw.target[:, 0].to(now.prediction)
        kappa = (self.gamma * torch.sigmoid(-h)).to(p).reshape(-1, *[1] * (p.ndim - 1))
        return square_distance(p - kappa * (p - old), target, "mean"), pair_metrics(h)
