r"""Diffusion-DPO: the classifier of preferences whose logit is a difference of denoising errors.

For a pair ``(x^w, x^l)`` noised with the *same* t and eps, and squared errors e of the network's own prediction (eps,
velocity, ...) summed over d dimensions,

.. math:: h = -\tfrac{B(t)}{2} \big[ (e^w - e^l)_\theta - (e^w - e^l)_{ref} \big], \qquad L = -E \log \sigma(h)

At ``theta = ref`` the loss is log 2. ``B`` is published as a constant times the mean error (``weights.py``, which also
derives the weight that makes the optimum the tilted law). The two images are one network pass, and so are the two of
the reference. Other links (IPO's square, a hinge, ...) and treatments of wrong labels are those of the preference core.

Reference: Wallace et al. 2023, arXiv:2311.12908, Eq. 14 and its code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from girsanov.methods.base import Data
from girsanov.methods.preference.base import ErrorPreference, ItemBatch, compared, pair_metrics
from girsanov.methods.preference.noised import Noised, Seen
from girsanov.methods.preference.weights import ConstantWeight, PairWeight
from girsanov.predictions import Prediction
from girsanov.preferences.labels import Clean, Labels
from girsanov.preferences.links import Link, Logistic
from girsanov.preferences.pairs import PairLoss
from girsanov.preferences.scores import Score
from girsanov.processes import Schedule


@dataclass(frozen=True, kw_only=True)
class DiffusionDPO(ErrorPreference):
    """Direct preference optimisation on pairs of samples; never touches a sampler.

    Attributes:
        weight: B(t).
        link: what the loss does with the logit.
        labels: how noise in the labels is treated.
    """

    weight: PairWeight = ConstantWeight()
    link: Link = Logistic()
    labels: Labels = Clean()

    data: ClassVar[Data] = "pairs"

    def coefficient(self, c: Schedule, prediction: Prediction, d: int) -> Tensor:
        """B(t)."""
        return self.weight(c, prediction, d)

    def rows(self, now: Seen, base: Seen | None, draw: Noised, batch: ItemBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """``f(h)`` of every pair."""
        loss = PairLoss(score=Score(1.0), link=self.link, labels=self.labels)
        items = compared(now, base, draw, batch)
        pairing = loss.pairing(items)
        return loss.rows(items), pair_metrics(loss.logits(pairing))
