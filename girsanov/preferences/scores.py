r"""Scores: what a policy implicitly thinks an item is worth, from log-probs, reference and length.

.. math:: s(y) = \beta\, g\!\left( \frac{\log\pi(y) - a \log\pi_{ref}(y)}{|y|^\ell} \right)

``a`` is the reference treatment: 1 the usual implicit reward, 0 none (CPO, SimPO, ORPO), between them the geometric
mixture ``pi_ref^a`` of RainbowPO. ``l`` is the length exponent: 0 the sum over tokens, 1 the mean. ``g`` is the
derivative of the divergence that holds the policy at the reference, ``g(D) = f'(e^D)`` up to a constant:

===============  =======================================  ====================================
shape            f(u)                                     g(D)
===============  =======================================  ====================================
reverse KL       ``u log u``                              ``D``
forward KL       ``-log u``                               ``-exp(-D)``
alpha            ``(u^(1-a) - (1-a) u - a)/(a (a-1))``    ``(1 - exp(-a D)) / a``
Jensen-Shannon   ``u log u - (u+1) log((u+1)/2)``         ``log sigma(D) + log 2``
odds             (no divergence)                          ``log(p / (1 - p))``, ``p = exp(D)``
===============  =======================================  ====================================

Derivation: the maximiser of ``E[r] - beta E_ref[f(pi/pi_ref)]`` has ``r = beta f'(pi/pi_ref) + const`` where pi > 0, so
a Bradley-Terry model of r has the logit ``beta [g(D_w) - g(D_l)]``; constants cancel in it. alpha -> 0 is the reverse
and alpha = 1 the forward KL, up to the constant 1. The odds are ORPO's, of the mean token log-prob.

References: Wang et al. 2023, arXiv:2309.16240 (f-DPO); Hong et al. 2024, arXiv:2403.07691 (odds); Zhao et al. 2024,
arXiv:2410.04203, Eq. 12 (mixture of references); Meng et al. 2024, arXiv:2405.14734 (length).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from girsanov.errors import GirsanovError
from girsanov.preferences.links import LIMIT
from girsanov.preferences.records import Compared


class Shape(ABC):
    """The function g."""

    @abstractmethod
    def __call__(self, d: Tensor) -> Tensor:
        """``g(D)``, increasing."""


@dataclass(frozen=True)
class ReverseKL(Shape):
    """``D``: the KL of the policy from the reference."""

    def __call__(self, d: Tensor) -> Tensor:
        """``D``."""
        return d


@dataclass(frozen=True)
class ForwardKL(Shape):
    """``-exp(-D)``; D is held above -30."""

    def __call__(self, d: Tensor) -> Tensor:
        """``-exp(-D)``."""
        return -(-d.clamp(min=-LIMIT)).exp()


@dataclass(frozen=True)
class Alpha(Shape):
    """``(1 - exp(-alpha D)) / alpha``; ``alpha D`` is held above -30."""

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise GirsanovError(f"alpha must lie in (0, 1] (ReverseKL() is 0), not {self.alpha}")

    def __call__(self, d: Tensor) -> Tensor:
        """``(1 - exp(-alpha D)) / alpha``."""
        return -torch.expm1((-self.alpha * d).clamp(max=LIMIT)) / self.alpha


@dataclass(frozen=True)
class JensenShannon(Shape):
    """``log(2 u / (1 + u))``, ``u = exp(D)``; at most log 2."""

    def __call__(self, d: Tensor) -> Tensor:
        """``log sigma(D) + log 2``."""
        return logsigmoid(d) + math.log(2)


@dataclass(frozen=True)
class Odds(Shape):
    """``log(p / (1 - p))`` of ``p = exp(D)``, D the mean log-prob of a token; D is held below -1e-6."""

    def __call__(self, d: Tensor) -> Tensor:
        """``D - log(1 - exp(D))``, in the form that is exact at both ends."""
        d = d.clamp(max=-1e-6)
        near = torch.log(-torch.expm1(d.clamp(min=-1.0)))
        return d - torch.where(d > -0.6931471805599453, near, torch.log1p(-d.exp()))


SHAPES: dict[str, type[Shape]] = {
    "reverse-kl": ReverseKL,
    "forward-kl": ForwardKL,
    "alpha": Alpha,
    "jensen-shannon": JensenShannon,
    "odds": Odds,
}
"""Every shape by name."""


@dataclass(frozen=True)
class Score:
    """``beta g((log pi - reference log pi_ref) / |y|^length)``.

    Attributes:
        beta: scale; the KL weight of the problem that is solved.
        reference: a, how much of the reference is subtracted.
        length: exponent of the length.
        shape: g.
    """

    beta: float = 0.1
    reference: float = 1.0
    length: float = 0.0
    shape: Shape = ReverseKL()

    def __post_init__(self) -> None:
        if not (self.beta > 0 and math.isfinite(self.beta)):
            raise GirsanovError(f"beta of a preference loss must be positive, not {self.beta}")
        if not 0 <= self.reference <= 1:
            raise GirsanovError(f"the share of the reference must lie in [0, 1], not {self.reference}")

    def log_ratio(self, batch: Compared) -> Tensor:
        """``(log pi - a log pi_ref) / |y|^l``, [B, K]."""
        d = batch.logp if self.reference == 0 else batch.logp - self.reference * batch.need("ref")
        return d if self.length == 0 else d / batch.need("length").to(d.dtype) ** self.length

    def __call__(self, batch: Compared) -> Tensor:
        """The scores of all items, [B, K]."""
        return self.beta * self.shape(self.log_ratio(batch))
