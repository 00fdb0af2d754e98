r"""The advantage rate of score as action in closed form, and the Gaussian policy around a score.

Sampling runs from t = 1 to t = 0. With the action a in the place of the score, a unit of time passed (``-dt``) moves

.. math:: dX = [-f X + l\, a]\,(-dt) + \eta g\, dB, \qquad l = \tfrac12 (1 + \eta^2) g^2, \qquad
          price = \tfrac12 K |a - s|^2

(eta = 0: the probability flow; K of ``price.py``). Along the policy ``a ~ N(mu, Sigma)`` the value V earns, per unit of
time, the advantage rate of an action: the generator

.. math:: q = -\tfrac12 K |a - s|^2 + \dot V + (-f x + l a) \cdot \nabla V + \tfrac12 \eta^2 g^2 \Delta V

with the time derivative taken along sampling. Only two terms depend on a, and V is the policy's own value, so that ``E
q = 0`` under the policy; subtracting that expectation leaves

.. math:: q(t, x, a) = l\, (a - \mu) \cdot \nabla V - \tfrac12 K \big( |a - s|^2 - |\mu - s|^2 - tr \Sigma \big)

which needs the value's gradient and no residual of a Bellman equation. The policy gradient theorem and Stein's lemma,
``E[Sigma^{-1} (a - mu) q] = E[grad_a q]``, give

.. math:: \nabla_\theta J = E \int \nabla_\theta \log \pi(a)\, q\, dt
          = E \int (\partial_\theta \mu)^T \big[ l \nabla V - K (\mu - s) \big] dt

The covariance of exploration has cancelled: it changes the variance of an estimate and not its mean. The fixed point is
``mu = s + l grad V / K``: ``s + grad V / beta`` at eta = 1 with the path KL. With an entropy bonus of weight gamma the
best covariance is ``gamma / K``.

References: Zhao et al. 2025, arXiv:2502.01819; Zhao et al. 2024, arXiv:2409.08400 (both samplers). The papers state a
closed form of the rate; this one was derived here.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.continuous.price import Price
from girsanov.predictions import scale
from girsanov.processes import Process


def dot(a: Tensor, b: Tensor) -> Tensor:
    """``<a, b>`` over the data dimensions, [B]."""
    return (a * b).flatten(1).sum(1)


@dataclass(frozen=True)
class AdvantageRate:
    """``q(t, x, a)`` of a sampler with noise eta on any process.

    Attributes:
        process: the noising process.
        price: the running cost of the action.
        eta: stochasticity of the sampler; 0 is the deterministic one.
    """

    process: Process
    price: Price
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not self.eta >= 0:
            raise GirsanovError(f"eta scales a standard deviation and must be at least 0, not {self.eta}")

    def lever(self, t: float | Tensor) -> Tensor:
        """``l = (1 + eta^2) g^2 / 2``: how far an action moves the drift, float64 of the shape of t."""
        return 0.5 * (1 + self.eta**2) * self.process.g2(t)

    def stiffness(self, t: float | Tensor) -> Tensor:
        """``K(t)`` of the price, float64 of the shape of t."""
        return self.price.rate(self.process, self.eta, t)

    def __call__(
        self, t: Tensor, action: Tensor, mean: Tensor, reference: Tensor, gradient: Tensor, trace: float | Tensor = 0.0
    ) -> Tensor:
        """``q`` [B].

        Args:
            t: times, [] or [B].
            action, mean, reference: the action, the policy's mean and the reference's score, [B, *D].
            gradient: ``grad_x V`` at the states, [B, *D].
            trace: ``tr Sigma`` of the policy; 0 for one that always takes its mean.
        """
        paid = dot(action - reference, action - reference) - dot(mean - reference, mean - reference) - trace
        earned = dot(action - mean, gradient)
        return self.lever(t).to(earned) * earned - 0.5 * self.stiffness(t).to(earned) * paid

    def slope(self, t: Tensor, mean: Tensor, reference: Tensor, gradient: Tensor) -> Tensor:
        """``l grad V - K (mean - reference)`` [B, *D]: the policy gradient in the mean action, per unit of time."""
        return scale(self.lever(t), gradient) * gradient - scale(self.stiffness(t), mean) * (mean - reference)

    def best(self, t: Tensor, reference: Tensor, gradient: Tensor) -> Tensor:
        """The action ``reference + l grad V / K`` [B, *D] with the largest rate."""
        return reference + scale(self.lever(t) / self.stiffness(t), gradient) * gradient

    def best_variance(self, t: float | Tensor, entropy: float) -> Tensor:
        """``entropy / K``: variance a dimension of the best Gaussian policy under an entropy bonus of this weight."""
        return entropy / self.stiffness(t)


@dataclass(frozen=True)
class GaussianPolicy:
    """Exploration around a score, ``a ~ N(mean, variance I)``.

    Attributes:
        mean: [B, *D].
        variance: of a dimension, positive; [] or [B].
    """

    mean: Tensor
    variance: Tensor

    def __post_init__(self) -> None:
        if not bool((torch.as_tensor(self.variance) > 0).all()):
            raise GirsanovError(f"exploration needs a positive variance, not {self.variance}: use the mean itself")

    @property
    def trace(self) -> Tensor:
        """``tr Sigma``, [] or [B]."""
        return self.variance * self.mean[0].numel()

    def sample(self, noise: Tensor) -> Tensor:
        """Actions [B, *D] from standard normal noise."""
        return self.mean + scale(self.variance.sqrt(), self.mean) * noise

    def log_prob(self, action: Tensor) -> Tensor:
        """Log density of actions [B, *D], [B]; differentiable in the mean."""
        gap, d = action - self.mean, self.mean[0].numel()
        return -0.5 * dot(gap, gap) / self.variance - 0.5 * d * torch.log(2 * math.pi * self.variance)

    def kl(self, other: Tensor) -> Tensor:
        """``KL`` from the policy of the same variance around ``other``: ``|mean - other|^2 / (2 variance)``, [B]."""
        return 0.5 * dot(self.mean - other, self.mean - other) / self.variance
