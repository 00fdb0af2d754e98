r"""Diffusion-KTO: single samples that were called good or bad, and what a gain or a loss is worth.

With ``s = -(B(t) / 2) (e_theta - e_ref)`` the implicit reward of a sample, y = +-1 its label and U a utility,

.. math:: L = - E\big[ \lambda_y\, U\big( y (s - z) \big) \big], \qquad z = \max(0, E[s])

z is the mean over all samples of the iteration and all processes, without a gradient. It is worked out in ``collect``
with the policy as it stands, so that micro-batches change nothing; the reference's errors are kept from there, so the
losses ask the policy alone. Published: beta = 1000 on the *mean* error without the half, which is
``ConstantWeight(2000)``; 0.8 of the samples good. (The paper's ``lambda (1 - U)`` differs by a constant.)

With the linear utility the gradient is that of a weighted denoising loss, ``y lambda grad e``; with the sigmoid,
samples far from z count less. It has no closed optimum; the classifier (``utility=loss-averse`` with a zero baseline)
has: see ``girsanov/preferences/pointwise.py``.

Reference: Li et al. 2024, arXiv:2404.04465, Eq. 9 and its code.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from girsanov.methods.base import Data, State, Turn
from girsanov.methods.preference.base import ErrorPreference, ItemBatch, compared
from girsanov.methods.preference.noised import Noised, Seen
from girsanov.methods.preference.weights import ConstantWeight, PairWeight
from girsanov.policy import Policy
from girsanov.predictions import Prediction
from girsanov.preferences.pointwise import PointLoss, SigmoidUtility, Utility, Zero
from girsanov.preferences.scores import Score
from girsanov.processes import Schedule
from girsanov.types import Batch, Prompts


@dataclass(frozen=True, kw_only=True)
class DiffusionKTO(ErrorPreference):
    """KTO on denoising errors.

    Attributes:
        weight: B(t).
        utility: U.
        desirable, undesirable: lambda of good and of bad samples.
        centred: whether z is the mean; else it is 0.
    """

    weight: PairWeight = ConstantWeight(2000.0)
    utility: Utility = SigmoidUtility()
    desirable: float = 1.0
    undesirable: float = 1.0
    centred: bool = True

    data: ClassVar[Data] = "labels"

    def coefficient(self, c: Schedule, prediction: Prediction, d: int) -> Tensor:
        """B(t)."""
        return self.weight(c, prediction, d)

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """The draws with the reference's errors and z."""
        batch = super().collect(policy, prompts, state, turn)
        assert isinstance(batch, ItemBatch)
        draws = []
        with torch.no_grad():
            for draw in batch.draws:
                known = dataclasses.replace(draw, base=draw.look(policy.view("reference", "train"), batch.cond).error)
                z = known.weight.new_zeros(())
                if self.centred:
                    items = compared(known.look(policy.view("current", "train"), batch.cond), None, known, batch)
                    z = turn.reduce.gather(Score(1.0)(items)).mean().clamp_min(0)
                draws.append(dataclasses.replace(known, baseline=z.expand(len(batch))))
        return dataclasses.replace(batch, draws=tuple(draws))

    def rows(self, now: Seen, base: Seen | None, draw: Noised, batch: ItemBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """``-lambda_y U(y (s - z))``."""
        items = compared(now, base, draw, batch)
        loss = PointLoss(
            score=Score(1.0), utility=self.utility, baseline=Zero(), desirable=self.desirable,
            undesirable=self.undesirable,
        )  # fmt: skip
        s, good = Score(1.0)(items).detach(), items.signs > 0
        zero = torch.zeros_like(s)
        gap = torch.where(good, s, zero).sum() / good.sum().clamp_min(1)
        gap = gap - torch.where(good, zero, s).sum() / (~good).sum().clamp_min(1)
        return loss.rows(items), {"gap": gap}
