r"""Losses of single items that are labelled good or bad: no pair is needed.

.. math:: L = - \sum_k \lambda_{y_k}\, U\big( y_k (s_k - z) \big), \qquad y_k = \pm 1

U is a utility, z a baseline without a gradient.

===========  ==========================  ============================================================================
utility      U(v)                        method
===========  ==========================  ============================================================================
sigmoid      ``sigma(v)``                KTO, Diffusion-KTO (Kahneman and Tversky: concave gains, convex losses)
loss-averse  ``log sigma(v)``            BCO; Diffusion-KTO's loss-averse annotator (concave)
risk-seeking ``-log sigma(-v)``          Diffusion-KTO's risk-seeking annotator (convex)
linear       ``v``                       the first-order limit of all three (times U'(0))
===========  ==========================  ============================================================================

===========  ============================================================================  ==========================
baseline     z                                                                             method
===========  ============================================================================  ==========================
zero         0
KL           ``max(0, beta mean(log-ratio of mismatched items))``: an estimate of the KL   KTO
batch mean   ``max(0, mean s)``                                                            Diffusion-KTO
midpoint     ``(mean s of good items + mean s of bad items) / 2``                          BCO
===========  ============================================================================  ==========================

KTO's paper writes ``lambda_y - v``; its survey form, used here, leaves the constant out: at the reference with z = 0 a
pair costs ``-(1/2 + 1/2) = -1``. With BCO's utility and labels of odds ``e^l`` the minimum has ``s = z + l``: a
classifier. KTO has no closed form: maximising ``sum_y (p_y - q_y) sigma(s_y - z)`` is not concave in the policy.

*SPPO* and *Nash-MD* regress a log-ratio on a win probability: ``games.py``.

References: Ethayarajh et al. 2024, arXiv:2402.01306, Eq. 8 (KTO); Jung et al. 2024, arXiv:2404.04656 (BCO); Li et al.
2024, arXiv:2404.04465 (Diffusion-KTO, utilities).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from girsanov.preferences.base import Loss
from girsanov.preferences.records import Compared
from girsanov.preferences.scores import Score


class Utility(ABC):
    """What a gain or a loss is worth."""

    @abstractmethod
    def __call__(self, v: Tensor) -> Tensor:
        """``U(v)``, increasing, elementwise."""


@dataclass(frozen=True)
class SigmoidUtility(Utility):
    """``sigma(v)``."""

    def __call__(self, v: Tensor) -> Tensor:
        """``sigma(v)``."""
        return torch.sigmoid(v)


@dataclass(frozen=True)
class LossAverse(Utility):
    """``log sigma(v)``."""

    def __call__(self, v: Tensor) -> Tensor:
        """``log sigma(v)``."""
        return logsigmoid(v)


@dataclass(frozen=True)
class RiskSeeking(Utility):
    """``-log sigma(-v)``."""

    def __call__(self, v: Tensor) -> Tensor:
        """``-log sigma(-v)``."""
        return -logsigmoid(-v)


@dataclass(frozen=True)
class Linear(Utility):
    """``v``."""

    def __call__(self, v: Tensor) -> Tensor:
        """``v``."""
        return v


UTILITIES: dict[str, type[Utility]] = {
    "sigmoid": SigmoidUtility,
    "loss-averse": LossAverse,
    "risk-seeking": RiskSeeking,
    "linear": Linear,
}
"""Every utility by name."""


class Baseline(ABC):
    """What an item is compared with."""

    @abstractmethod
    def estimate(self, batch: Compared, s: Tensor, beta: float) -> Tensor:
        """z from this batch, []."""

    def __call__(self, batch: Compared, s: Tensor, beta: float) -> Tensor:
        """z, [], without a graph: the batch's ``baseline`` if it has one (a mean over all processes, say)."""
        if batch.baseline is not None:
            return batch.baseline.detach()
        return self.estimate(batch, s.detach(), beta)


@dataclass(frozen=True)
class Zero(Baseline):
    """0."""

    def estimate(self, batch: Compared, s: Tensor, beta: float) -> Tensor:
        """0."""
        return s.new_zeros(())


@dataclass(frozen=True)
class MismatchedKL(Baseline):
    """``max(0, beta mean(mismatched log-ratios))``."""

    def estimate(self, batch: Compared, s: Tensor, beta: float) -> Tensor:
        """An estimate of ``beta KL(policy || reference)`` from items under prompts of others."""
        return beta * batch.need("mismatched").detach().mean().clamp_min(0)


@dataclass(frozen=True)
class BatchMean(Baseline):
    """``max(0, mean s)`` over the items that are there."""

    def estimate(self, batch: Compared, s: Tensor, beta: float) -> Tensor:
        """``max(0, mean s)``."""
        return s[batch.there].mean().clamp_min(0)


@dataclass(frozen=True)
class Midpoint(Baseline):
    """The middle between the mean scores of good and of bad items; of those there are, if one side is missing."""

    def estimate(self, batch: Compared, s: Tensor, beta: float) -> Tensor:
        """``(mean s_good + mean s_bad) / 2``."""
        sides = [s[batch.there & (batch.signs * sign > 0)] for sign in (1, -1)]
        return torch.stack([side.mean() for side in sides if len(side)]).mean()


BASELINES: dict[str, type[Baseline]] = {
    "zero": Zero,
    "mismatched-kl": MismatchedKL,
    "batch-mean": BatchMean,
    "midpoint": Midpoint,
}
"""Every baseline by name."""


def running(old: Tensor | None, new: Tensor, decay: float = 0.9) -> Tensor:
    """BCO's running baseline, for ``Compared.baseline``: ``decay old + (1 - decay) new``."""
    return new if old is None else decay * old + (1 - decay) * new


@dataclass(frozen=True, kw_only=True)
class PointLoss(Loss):
    """``-sum_k lambda_y U(y (s - z))``.

    Attributes:
        score: log-probs to scores.
        utility, baseline: U and z.
        desirable, undesirable: lambda of good and of bad items.
    """

    score: Score = Score()
    utility: Utility = SigmoidUtility()
    baseline: Baseline = MismatchedKL()
    desirable: float = 1.0
    undesirable: float = 1.0

    def rows(self, batch: Compared) -> Tensor:
        """The items' losses added up."""
        s, sign = self.score(batch), batch.signs
        z = self.baseline(batch, s, self.score.beta)
        weight = torch.where(sign > 0, self.desirable, self.undesirable).to(s.dtype)
        loss = -weight * self.utility(sign * (s - z))
        return torch.where(batch.there, loss, torch.zeros_like(loss)).sum(1)
