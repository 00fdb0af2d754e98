r"""Diffusion-SDPO: Diffusion-DPO whose loser may not make the winner worse.

DPO lowers its loss as well by raising the loser's error as by lowering the winner's, and a shared network can do the
first at the winner's cost. Let u be the residuals ``p - target`` of the two images. A step against the loss moves the
winner's error, to first order and for a network whose outputs at the two images move alike, in proportion to

.. math:: -\big( |u^w|^2 - \lambda\, \langle u^w, u^l \rangle \big)

when the loser's gradient is scaled by lambda. The largest safe scale is

.. math:: \lambda = \min\Big( 1,\; \mu\, \frac{|u^w|^2}{\langle u^w, u^l \rangle} \Big) \ \text{if}\ \langle u^w, u^l
    \rangle > 0, \quad 1\ \text{else}

with ``mu <= 1`` for a margin. The loss keeps its value (the scaled part enters as ``lambda e + (1 - lambda) sg(e)``);
with lambda = 1 it is Diffusion-DPO. The rule is in the space of outputs, as published: no gradient of the network is
asked for it.

The public code has ``1 - mu`` for mu (its 0.9, for SD1.5, is ``mu = 0.1`` here) and one scale for all pairs of a
device; here each pair has its own, so that micro-batches change nothing.

Reference: Fu et al. 2025, arXiv:2511.03317, and its code (the rule was derived here and found to be the code's).
"""

import dataclasses
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
from girsanov.precision import as_wide
from girsanov.predictions import Prediction
from girsanov.preferences.links import Link, Logistic
from girsanov.preferences.pairs import PairLoss
from girsanov.preferences.scores import Score
from girsanov.processes import Schedule


@dataclass(frozen=True, kw_only=True)
class DiffusionSDPO(ErrorPreference):
    """Diffusion-DPO with a safeguard.

    Attributes:
        weight: B(t).
        link: what the loss does with the logit.
        mu: share of the safe scale that is used.
    """

    weight: PairWeight = ConstantWeight()
    link: Link = Logistic()
    mu: float = 1.0

    data: ClassVar[Data] = "pairs"

    def __post_init__(self) -> None:
        if not 0 < self.mu <= 1:
            raise GirsanovError(f"the share of the safe scale lies in (0, 1], not {self.mu}")

    def coefficient(self, c: Schedule, prediction: Prediction, d: int) -> Tensor:
        """B(t)."""
        return self.weight(c, prediction, d)

    def rows(self, now: Seen, base: Seen | None, draw: Noised, batch: ItemBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """DPO's loss with the loser's gradient scaled."""
        scale = safe_scale(now.prediction.detach(), draw.target, self.mu).to(now.error)
        loser = scale * now.error[:, 1] + (1 - scale) * now.error[:, 1].detach()
        held = dataclasses.replace(now, error=torch.stack([now.error[:, 0], loser], 1))
        loss, items = PairLoss(score=Score(1.0), link=self.link), compared(held, base, draw, batch)
        metrics = pair_metrics(loss.logits(loss.pairing(items)))
        return loss.rows(items), metrics | {"loser_scale": scale.mean()}


def safe_scale(prediction: Tensor, target: Tensor, mu: float) -> Tensor:
    """lambda [B] of predictions and targets [B, 2, *D], winner first."""
    winner, loser = as_wide((prediction - target.to(prediction)).flatten(2)).unbind(1)
    along, size = (winner * loser).sum(1), winner.square().sum(1)
    safe = (mu * size / along.clamp_min(1e-30)).clamp(max=1.0)
    return torch.where(along > 0, safe, torch.ones_like(safe))
