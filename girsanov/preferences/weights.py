r"""Weights: how much a pair counts (no gradient flows through them), and how sharp its prompt is.

===========  =================================================  ====================================================
weight       value                                              source
===========  =================================================  ====================================================
uniform      a constant, 1 by default
score gap    ``tanh(|gap| / 2T)``                               OPTune: pairs of a larger reward gap count more
rank         ``|G_i - G_j| |1/D(i) - 1/D(j)|``                  RankDPO: by the annotator's ranking
lambda       the same with the ranks of the current scores      LiPO-lambda
===========  =================================================  ====================================================

with gains ``G = 2^score - 1`` and discounts ``D = log(1 + rank)``, rank from 1.

*The weight of a gap.* OPTune weights DPO by the reward gap; the survey gives no function. At the reference the gradient
of DPO averaged over Bradley-Terry labels of a pair with gap g is ``2 sigma(g / T) - 1 = tanh(g / 2T)`` times that of a
certain label: that is the weight here. A tie weighs nothing, a wide gap 1. The optimum does not move where the model
can meet every pair's odds.

A *dispersion* multiplies the whole logit (Mallows-DPO): ``h = phi(x) (s_w - s_l - margins)``.

References: Chen et al. 2024, arXiv:2406.07657 (OPTune); Karthik et al. 2024, arXiv:2410.18013 (RankDPO); Liu et al.
2024, arXiv:2402.01878, Eq. 8 (LiPO); Chen et al. 2024, arXiv:2405.14953 (Mallows).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.preferences.pairing import Pairing


class Weight(ABC):
    """How much a pair counts."""

    @abstractmethod
    def __call__(self, pairing: Pairing) -> Tensor:
        """Weights [B, P] (or a shape that broadcasts to it), without a graph."""


@dataclass(frozen=True)
class Uniform(Weight):
    """``value``, 1 by default."""

    value: float = 1.0

    def __call__(self, pairing: Pairing) -> Tensor:
        """``value``."""
        return torch.full((), self.value, dtype=pairing.s.dtype, device=pairing.s.device)


@dataclass(frozen=True)
class GapWeight(Weight):
    """``tanh(|gap| / 2T)``."""

    temperature: float = 1.0

    def __call__(self, pairing: Pairing) -> Tensor:
        """``tanh(|gap| / 2T)``."""
        return torch.tanh(pairing.score_gap.detach().abs() / (2 * self.temperature)).to(pairing.s.dtype)


def _gain_gap(pairing: Pairing) -> Tensor:
    better, worse = (2.0 ** side.detach().to(pairing.s.dtype) for side in pairing.sides("score"))
    return (better - worse).abs()


@dataclass(frozen=True)
class RankWeight(Weight):
    """``|G_i - G_j| |1/D(i) - 1/D(j)|`` with the items' given order as ranks."""

    def __call__(self, pairing: Pairing) -> Tensor:
        """Gain gap times discount gap."""
        discount = 1 / torch.log1p(torch.arange(1, pairing.batch.items + 1, device=pairing.s.device).to(pairing.s))
        return _gain_gap(pairing) * (discount[pairing.better] - discount[pairing.worse]).abs()


@dataclass(frozen=True)
class LambdaWeight(Weight):
    """``|G_i - G_j| |1/D(i) - 1/D(j)|`` with the ranks of the policy's own scores."""

    def __call__(self, pairing: Pairing) -> Tensor:
        """Gain gap times discount gap."""
        s = pairing.s.detach().masked_fill(~pairing.batch.there, -torch.inf)
        rank = s.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + 1
        discount = 1 / torch.log1p(rank.to(s))
        return _gain_gap(pairing) * (discount[:, pairing.better] - discount[:, pairing.worse]).abs()


WEIGHTS: dict[str, type[Weight]] = {
    "uniform": Uniform,
    "score-gap": GapWeight,
    "rank": RankWeight,
    "lambda": LambdaWeight,
}
"""Every weight of pairs by name."""


class Sharpness(ABC):
    """The factor of a prompt's logits."""

    @abstractmethod
    def __call__(self, pairing: Pairing) -> Tensor:
        """phi, [B, 1] or a shape that broadcasts to [B, P]."""


@dataclass(frozen=True)
class Equal(Sharpness):
    """1: all prompts alike."""

    def __call__(self, pairing: Pairing) -> Tensor:
        """1."""
        return torch.ones((), dtype=pairing.s.dtype, device=pairing.s.device)


@dataclass(frozen=True)
class Dispersed(Sharpness):
    """The batch's ``dispersion``."""

    def __call__(self, pairing: Pairing) -> Tensor:
        """phi."""
        return pairing.batch.need("dispersion").detach().unsqueeze(1).to(pairing.s.dtype)


SHARPNESS: dict[str, type[Sharpness]] = {"equal": Equal, "dispersed": Dispersed}
"""Every treatment of a prompt's dispersion by name."""
