r"""A bound on the reward gap for any data, with its one assumption computed and not assumed.

In ``y = x / alpha`` the eta-sampler has drift ``(1 + eta^2) rho score`` per unit of ``-d rho``. Let ``K(rho)`` be the
largest eigenvalue of the Hessian of ``log p_rho`` anywhere: the drift's one-sided Lipschitz constant is ``(1 + eta^2)
rho K``. Two samplers driven by the same noise, one from the prior and one from ``p_{rho_T}`` (which ends in the data),
then satisfy, by Groenwall's inequality and whatever the sign of K,

.. math:: W_2(out_\eta, p_0) \le e^{-I}\, W_2(prior, p_{\rho_T}), \qquad
    I = -(1 + \eta^2) \int_0^{\rho_T} \rho\, K(\rho)\, d\rho

For Gaussian data ``K = -1 / (lambda_max + rho^2)`` and the factor is ``q^{(1 + eta^2)/2}``, which is attained. For a
reward with ``|grad r(x)| <= |b| + |A| |x|`` (quadratic) the gap is at most ``sum over {0, eta} of W_2 (|b| + |A| (2 M +
W_2) / 2)`` with ``M^2 = E_{p_0} |x|^2``.

The published bound asks for more: a drift that contracts at every time (dissipativity). In x this is

.. math:: L(t) = -f + \tfrac12 (1 + \eta^2) g^2 K_x(t) < 0

and the first term is positive for every variance-preserving process: with unit-variance data, the plain VP process, L =
0 at eta = 0. ``require_dissipative`` says where it fails; the bound above does not need it.

References: arXiv:2510.10767, 2026, theorem 4.1 (the question); derived here.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.problems.laws import Gaussian, Mixture
from girsanov.problems.rewards import QuadraticReward
from girsanov.processes import Process
from girsanov.theory.line import integrate, quantile

FAR = 1e8
"""The rho that stands for infinity."""


@dataclass(frozen=True)
class Bound:
    """Distance of a sampler's output from the data.

    Attributes:
        start: ``W_2`` of prior and noised data, in x.
        factor: what it is multiplied with on the way, ``e^{-I} / alpha_T``; above 1 the sampler may spread paths apart.
    """

    start: float
    factor: float

    @property
    def distance(self) -> float:
        """Upper bound of ``W_2(output, data)``."""
        return self.start * self.factor


def curvature(data: Mixture, rho: Tensor) -> Tensor:
    """``K(rho)``, the largest eigenvalue of the Hessian of ``log p_rho`` over all y, for rho [n]: shape [n].

    Exact for Gaussians; on the line the maximum over 4001 points (the Hessian is ``Var_gamma(score_k) - E_gamma[1 /
    S_k]`` over the components' posterior weights). Raises for mixtures of more dimensions.
    """
    if isinstance(data, Gaussian):
        return -1 / (data.eigenvalues.max() + rho**2)
    if data.d != 1:
        raise GirsanovError("the one-sided Lipschitz constant is computed for Gaussians and for mixtures on the line")
    worst = []
    for r in rho.tolist():
        law = data.noised(1.0, r)
        half = float(law.means.abs().max() + 2 * law.covs.max().sqrt())
        y = torch.linspace(-half, half, 4001, dtype=torch.float64).unsqueeze(1)
        S = law.covs[:, 0, 0]
        z = y - law.means[:, 0]
        gamma = torch.softmax(law.weights.log() - 0.5 * (z**2 / S + S.log()), 1)
        score = -z / S
        spread = (gamma * score**2).sum(1) - (gamma * score).sum(1) ** 2
        worst.append((spread - (gamma / S).sum(1)).max())
    return torch.stack(worst)


def wasserstein_bound(process: Process, data: Mixture, eta: float, points: int = 400) -> Bound:
    """The bound for the eta-sampler started from the prior at t = 1, in continuous time.

    Args:
        process: the noising process.
        data: a Gaussian of any dimension, or a mixture on the line.
        eta: stochasticity, 0 or above.
        points: nodes of the integral over log rho.
    """
    if not eta >= 0:
        raise GirsanovError(f"eta scales a standard deviation and must be at least 0, not {eta}")
    c = process(1.0)
    rho = float(c.sigma / c.alpha) if float(c.alpha) > 0 else FAR
    alpha = float(c.alpha) if float(c.alpha) > 0 else 1 / FAR
    small = 1e-4 * float(data.eigenvalues.min().sqrt())
    # Gauss-Legendre in log rho; below `small` the integrand rho^2 K is of order rho^2.
    u, w = _legendre(math.log(small), math.log(rho), points)
    r = u.exp()
    integral = float((w * r**2 * curvature(data, r)).sum())
    return Bound(_start_distance(process, data), math.exp((1 + eta**2) * integral) / alpha)


def gap_bound(process: Process, data: Mixture, reward: QuadraticReward, eta: float) -> float:
    """Upper bound of ``|E r(ODE) - E r(SDE_eta)|`` for the exact model, in continuous time."""
    size = float((data.mean.square().sum() + data.cov.trace()).sqrt())
    slope, bend = float(reward.b.norm()), float(torch.linalg.matrix_norm(reward.A, 2))
    distances = (wasserstein_bound(process, data, e).distance for e in (0.0, eta))
    return sum(d * (slope + 0.5 * bend * (2 * size + d)) for d in distances)


def require_dissipative(process: Process, data: Mixture, eta: float, points: int = 200) -> None:
    """Raises GirsanovError, naming a time, if the reverse drift in x does not contract at every time in (0, 1)."""
    t = torch.linspace(0, 1, points + 2, dtype=torch.float64)[1:-1]
    c = process(t)
    f, g2 = process.f(t), process.g2(t)
    L = -f + 0.5 * (1 + eta**2) * g2 * curvature(data, c.sigma / c.alpha) / c.alpha**2
    worst = int(L.argmax())
    if float(L[worst]) >= -1e-9 * float(f.abs().max() + 1):
        raise GirsanovError(
            f"the reverse drift of {type(process).__name__} at eta = {eta} is not dissipative: its one-sided Lipschitz "
            f"constant is {float(L[worst]):.3g} at t = {float(t[worst]):.2f}; a bound that assumes dissipativity does "
            "not apply, use wasserstein_bound, which integrates the constant whatever its sign"
        )


def _legendre(a: float, b: float, n: int, panels: int = 20) -> tuple[Tensor, Tensor]:
    """Nodes and weights of a composite Gauss-Legendre rule on [a, b] of about n points."""
    x, w = np.polynomial.legendre.leggauss(max(2, n // panels))
    edges = np.linspace(a, b, panels + 1)
    half = 0.5 * np.diff(edges)
    nodes = (edges[:-1] + half)[:, None] + half[:, None] * x
    return torch.from_numpy(nodes.ravel()), torch.from_numpy((half[:, None] * w).ravel())


def _start_distance(process: Process, data: Mixture) -> float:
    """``W_2(prior, p_T)`` in x."""
    c = process(1.0)
    noised = data.noised(float(c.alpha), float(c.sigma))
    if isinstance(noised, Gaussian):
        gap = (noised.eigenvalues[0].sqrt() - process.prior_std).square().sum() + noised.mean.square().sum()
        return float(gap.sqrt())
    prior = Gaussian(0.0, process.prior_std**2)
    return math.sqrt(integrate(lambda x: (quantile(noised, prior, x) - x).square().squeeze(1), prior))
