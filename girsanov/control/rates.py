r"""Estimates of the advantage rate q of a policy along its own paths, and how much they scatter as dt -> 0.

With V the value of the policy (entropy included), h = dt, ``delta = e^{-beta h}``, ``X'`` the next state and xi normal,

.. math::
    \hat q_{td} &= r + \frac{\delta V(X') - V(X)}{h}
        = q + \nabla V \cdot \sigma \xi\, h^{-1/2} + \tfrac12 (\xi^T \sigma^T \nabla^2 V \sigma \xi
          - \mathrm{tr}\, \sigma \sigma^T \nabla^2 V) + O(\sqrt h) \\
    \hat q_{centred} &= \hat q_{td} - \frac{\delta}{h} \nabla V(X) \cdot (X' - X - b h) \\
    \hat q_{generator} &= r + b \cdot \nabla V + \tfrac12 \mathrm{tr}(\sigma \sigma^T \nabla^2 V) - \beta V

given (X, a). The first is the published one; it is model-free, and its variance is ``|sigma^T grad V|^2 / h``. The
second takes off a term of mean zero given (X, a), the martingale increment of V, so it estimates the same q; it needs
the drift, and its variance stays bounded, ``tr (sigma^T V'' sigma)^2 / 2``. The third is q itself wherever V is,
without any noise; it needs drift and diffusion, and V twice differentiable; its bias is of order h, that of the chain.

What it means for a policy gradient over N steps of M paths. Its noise is a sum of ``h delta^k grad log pi (grad V .
sigma xi) h^{-1/2}``, a discretised stochastic integral ``int e^{-beta t} grad log pi (grad V . sigma) dB``: of variance
O(1) a *path*, whatever h is. So the naive rate does not explode at equal environment *time* if every step is used. It
does explode, like 1 / h, at an equal number of *samples* (steps), where one state a path is used (``Exponential`` in
``occupation.py``), and wherever single advantages are looked at (divided by their std, clipped). No baseline that is a
function of the state alone can mend that: the noise is uncorrelated with it. It has to follow the noise.

``Regressed`` fits q on the features ``(a - mu)_i, (a - mu)_i x_j, (a - mu)_i (a - mu)_j - Sigma_ij`` by least squares
over the batch: model-free, and per sample as smooth as the true one. At the policy that made the data these are
combinations of the score of an affine Gaussian policy, so its first gradient is that of the raw rates (compatible
features, Sutton et al. 2000): it helps per sample, over several passes, and with networks, not in the first gradient of
an affine policy.

References: Zhao et al. 2023, arXiv:2305.18901 (q along a path); Jia & Zhou 2023, arXiv:2207.00713 (q in continuous
time).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.control.environments.base import Environment
from girsanov.control.gaussian import ActionLaw
from girsanov.control.occupation import Paths
from girsanov.control.values import Value
from girsanov.distributed import Reduce
from girsanov.errors import GirsanovError


class Rate(ABC):
    """An estimate of q at every step of the paths that a policy made."""

    @abstractmethod
    def __call__(self, environment: Environment, paths: Paths, value: Value, weights: Tensor, reduce: Reduce) -> Tensor:
        """q, [B, T].

        Args:
            environment: with its drift and diffusion.
            paths: what the policy did.
            value: its value function.
            weights: of the occupation time, [B, T].
            reduce: the other processes.
        """


@dataclass(frozen=True)
class TD(Rate):
    """``r + (e^{-beta dt} V(X') - V(X)) / dt``, as published; model-free."""

    def __call__(self, environment: Environment, paths: Paths, value: Value, weights: Tensor, reduce: Reduce) -> Tensor:
        """q, [B, T]."""
        v = value(paths.x.flatten(0, 1)).view(paths.x.shape[:2])
        delta = math.exp(-environment.discount * environment.dt)
        return paths.reward + (delta * v[:, 1:] - v[:, :-1]) / environment.dt


@dataclass(frozen=True)
class Centred(Rate):
    """``TD`` less the martingale increment of V; needs the drift."""

    def __call__(self, environment: Environment, paths: Paths, value: Value, weights: Tensor, reduce: Reduce) -> Tensor:
        """q, [B, T]."""
        x, a = paths.flat
        moved = (paths.x[:, 1:] - paths.states).flatten(0, 1) - environment.dt * environment.drift(x, a)
        delta = math.exp(-environment.discount * environment.dt)
        noise = (delta / environment.dt) * (value.gradient(x) * moved).sum(1)
        return TD()(environment, paths, value, weights, reduce) - noise.view_as(paths.reward)


@dataclass(frozen=True)
class Generator(Rate):
    """``r + b . grad V + tr(sigma sigma' V'') / 2 - beta V``; needs drift and diffusion."""

    def __call__(self, environment: Environment, paths: Paths, value: Value, weights: Tensor, reduce: Reduce) -> Tensor:
        """q, [B, T]."""
        x, a = paths.flat
        sigma = environment.diffusion(x, a)
        drift = (environment.drift(x, a) * value.gradient(x)).sum(1)
        spread = 0.5 * (sigma * (value.hessian(x) @ sigma)).sum((1, 2))
        return paths.reward + (drift + spread - environment.discount * value(x)).view_as(paths.reward)


@dataclass(frozen=True)
class Regressed(Rate):
    """Least squares of another rate on quadratic features of the action's deviation.

    Attributes:
        ridge: relative to the mean square of the features.
    """

    ridge: float = 1e-6

    def __post_init__(self) -> None:
        if not self.ridge >= 0:
            raise GirsanovError(f"ridge = {self.ridge} must not be negative")

    def features(self, x: Tensor, a: Tensor, law: ActionLaw) -> Tensor:
        """Features of mean zero given x, [B, p]."""
        u = law.whiten(a - law.mean)
        i, j = torch.triu_indices(u.shape[1], u.shape[1], device=u.device)
        square = u[:, i] * u[:, j] - (i == j).to(u)
        return torch.cat([u, (u[:, :, None] * x[:, None, :]).flatten(1), square], 1)

    def __call__(self, environment: Environment, paths: Paths, value: Value, weights: Tensor, reduce: Reduce) -> Tensor:
        """q less ``-gamma H``'s deviation: the fitted advantage on its level ``-gamma H(x)``, [B, T]."""
        phi = self.features(*paths.flat, paths.law)
        level = -environment.entropy * paths.entropy
        target = (TD()(environment, paths, value, weights, reduce) - level).flatten()
        w = weights.flatten()[:, None]
        gram, moment = reduce.mean(phi.T @ (w * phi)), reduce.mean(phi.T @ (w[:, 0] * target))
        gram = gram + self.ridge * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
        return level + (phi @ torch.linalg.solve(gram, moment)).view_as(level)


RATES: dict[str, type[Rate]] = {
    "td": TD,
    "centred": Centred,
    "generator": Generator,
    "regressed": Regressed,
}
"""Every estimate of q by name."""
