r"""The law of an action: a Gaussian with any covariance, with its exact entropy and divergences.

With ``Sigma = L L^T``, m actions and ``w(v) = L^{-1} v``,

.. math::
    \log \pi(a) = -\tfrac12 |w(a - \mu)|^2 - \log\det L - \tfrac m2 \log 2 \pi, \qquad
    H = \log\det L + \tfrac m2 (1 + \log 2 \pi)

    KL(p \| q) = \tfrac12 \big( \| L_q^{-1} L_p \|_F^2 - m + |L_q^{-1} (\mu_p - \mu_q)|^2 \big)
        + \log\det L_q - \log\det L_p
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError

LOG_2PI = math.log(2 * math.pi)


def divide(tril: Tensor, v: Tensor) -> Tensor:
    """``L^{-1} v`` of factors [..., m, m] and columns v [..., m, c]; one action needs no solver."""
    return v / tril if tril.shape[-1] == 1 else torch.linalg.solve_triangular(tril, v, upper=False)


@dataclass(frozen=True)
class ActionLaw:
    """``N(mean, tril tril^T)`` for each of B states.

    Attributes:
        mean: [B, m].
        tril: lower triangular with a positive diagonal, [m, m] for all states or [B, m, m].
    """

    mean: Tensor
    tril: Tensor

    def __post_init__(self) -> None:
        m = self.mean.shape[-1]
        if self.mean.ndim != 2 or self.tril.shape not in ((m, m), (len(self.mean), m, m)):
            raise GirsanovError(
                f"a law of actions with mean {list(self.mean.shape)} and factor {list(self.tril.shape)} does not fit: "
                "return a mean [B, m] and a lower triangular factor [m, m] or [B, m, m]"
            )

    @property
    def covariance(self) -> Tensor:
        """[m, m] or [B, m, m]."""
        return self.tril @ self.tril.mT

    @property
    def log_det(self) -> Tensor:
        """``log det L``, [] or [B]."""
        return self.tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def sample(self, noise: Tensor) -> Tensor:
        """``mean + L noise``, [B, m], for standard normal noise [B, m]."""
        if self.tril.ndim == 2:
            return torch.addmm(self.mean, noise, self.tril.mT)
        return self.mean + (self.tril @ noise.unsqueeze(-1)).squeeze(-1)

    def whiten(self, v: Tensor) -> Tensor:
        """``L^{-1} v``, [B, m], of v [B, m]."""
        if self.tril.ndim == 2:
            return divide(self.tril, v.mT).mT
        return divide(self.tril, v.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, a: Tensor) -> Tensor:
        """Log-density of actions a [B, m], [B]."""
        return -0.5 * self.whiten(a - self.mean).square().sum(1) - self.log_det - 0.5 * a.shape[1] * LOG_2PI

    def entropy(self) -> Tensor:
        """H in nats, [B]."""
        m = self.mean.shape[1]
        return (self.log_det + 0.5 * m * (1 + LOG_2PI)).expand(len(self.mean))

    def kl(self, other: "ActionLaw") -> Tensor:
        """``KL(self || other)`` at every state, [B]."""
        spread = divide(other.tril, self.tril).square().sum((-2, -1)) - self.mean.shape[1]
        return 0.5 * (spread + other.whiten(self.mean - other.mean).square().sum(1)) + other.log_det - self.log_det

    def detach(self) -> "ActionLaw":
        """The same law without a graph."""
        return ActionLaw(self.mean.detach(), self.tril.detach())
