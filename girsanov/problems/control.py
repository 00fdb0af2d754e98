r"""Optimal control of samplers in continuous time: Gaussian data with a quadratic reward, and mixtures at eta = 1.

The sampler with noise eta, ``dy = -(1 + eta^2) rho score d rho + eta sqrt(2 rho) dW`` in ``y = x / alpha``, is steered
through its score and pays beta times the path KL. Its value is ``V = beta log E[exp(r(X_end) / beta) | x_t]`` under the
*untuned* sampler, for which

.. math:: X_{end} | x_t \sim N(M, S), \quad M = m + \alpha^{\eta^2} (C S_t^{-1})^{(1 + \eta^2)/2} (x_t - \alpha m),
    \quad S = C - C (\alpha^2 C S_t^{-1})^{\eta^2}

with ``S_t = alpha^2 C + sigma^2``. The drift control ``b`` of the eta-process is optimal at ``eta^2 2 rho grad_y V /
beta``, and a score correction moves the drift by ``(1 + eta^2) rho``, so

.. math:: \Delta s = \frac{2 \eta^2}{1 + \eta^2} \frac{\nabla_x V_\eta}{\beta}

Only eta = 1 learns a field that other samplers may use as it is. Run with another noise eta', the learned field
reproduces the marginals of the trained process if its correction is scaled by ``deployment_factor(eta, eta')`` (and the
process is memoryless).

References: Domingo-Enrich et al. 2025, arXiv:2409.08861, theorem 1 (memoryless noise); derived here beyond it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.predictions import scale
from girsanov.problems.laws import Gaussian, Mixture
from girsanov.problems.rewards import QuadraticReward, check_beta, log_mean_exp
from girsanov.processes import Process, Schedule


def deployment_factor(eta: float, eta_deploy: float) -> float:
    """Scale ``(eta^2 + eta'^2)(1 + eta^2) / (2 eta^2 (1 + eta'^2))`` of a correction trained at eta, to sample at eta'.

    The marginals of the trained process are ``p h`` with ``h = exp(V / beta)`` and its correction is
    ``2 eta^2 / (1 + eta^2) grad log h``. Its probability flow is ``rho (s + eta^2 grad log h)`` per unit of ``-d rho``;
    adding ``eta'^2 rho grad log(p h)`` gives the eta'-process with the same marginals.
    """
    if not eta > 0 or eta_deploy < 0:
        raise GirsanovError(f"training needs eta > 0 and deployment eta >= 0, not {eta} and {eta_deploy}")
    e, d = eta**2, eta_deploy**2
    return (e + d) * (1 + e) / (2 * e * (1 + d))


def transition(law: Gaussian, eta: float, c: Schedule) -> tuple[Tensor, Tensor]:
    """``(k, S)``, [..., d, d], with ``X_end | x_t ~ N(m + k (x_t - alpha m), S)`` under the untuned eta-sampler.

    Any eta >= 0; the probability flow (eta = 0) has ``S = 0``.
    """
    e, lam, basis = eta**2, law.eigenvalues[0], law.eigenvectors[0]
    alpha, sigma = c.alpha.unsqueeze(-1), c.sigma.unsqueeze(-1)
    ratio = lam / (alpha**2 * lam + sigma**2)
    values = alpha**e * ratio ** ((1 + e) / 2), lam * (1 - (alpha**2 * ratio) ** e)
    k, S = (torch.einsum("ij,...j,kj->...ik", basis, v, basis) for v in values)
    return k, S


@dataclass(frozen=True)
class OptimalControl:
    """Value and control of the eta-sampler on Gaussian data with a quadratic reward.

    Attributes:
        law: the data.
        reward: the pay-off at the end.
        beta: weight of the path KL.
        process: the noising process.
        eta: stochasticity of the trained sampler, above 0.
    """

    law: Gaussian
    reward: QuadraticReward
    beta: float
    process: Process
    eta: float = 1.0

    def __post_init__(self) -> None:
        check_beta(self.beta)
        if not self.eta > 0:
            raise GirsanovError("path-KL control needs noise: give eta > 0 (ODE-AM is solved in problems.proximal)")

    def transition(self, c: Schedule) -> tuple[Tensor, Tensor]:
        """``transition`` of the law under the untuned sampler, [..., d, d] each."""
        return transition(self.law, self.eta, c)

    def _parts(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``M [B, d], S [B, d, d], k [B, d, d]`` at the states."""
        c = self.process(t.expand(len(x)))
        k, S = self.transition(c)
        y = x.flatten(1).double() - c.alpha.unsqueeze(1) * self.law.mean
        return self.law.mean + torch.einsum("bij,bj->bi", k, y), S, k

    def value(self, x: Tensor, t: Tensor) -> Tensor:
        """``V_eta(t, x)`` at states x [B, *D] and times [] or [B]: float64 [B]."""
        M, S, _ = self._parts(x, t)
        return self.beta * log_mean_exp(self.reward, self.beta, M, S)

    def value_gradient(self, x: Tensor, t: Tensor) -> Tensor:
        """``grad_x V = k^T (I + A S / beta)^{-1} (b - A M)``, in the shape of x, float64."""
        M, S, k = self._parts(x, t)
        mix = torch.eye(self.law.d, dtype=torch.float64) + self.reward.A @ S / self.beta
        g = torch.linalg.solve(mix, (self.reward.b - M @ self.reward.A).unsqueeze(-1))
        return (k.mT @ g).squeeze(-1).view(x.shape)

    def score_correction(self, x: Tensor, t: Tensor) -> Tensor:
        """``2 eta^2 / (1 + eta^2) grad_x V / beta``: optimal score minus the score of the data, in the shape of x."""
        e = self.eta**2
        return 2 * e / (1 + e) / self.beta * self.value_gradient(x, t)

    def velocity_correction(self, x: Tensor, t: Tensor) -> Tensor:
        """The same control on a velocity, ``-(g^2 / 2) Delta s``, finite where alpha > 0."""
        c = self.process(t)
        return scale(-c.sigma * c.wronskian / c.alpha, x) * self.score_correction(x, t)

    def trained_law(self, start: Gaussian, t: float | Tensor = 1.0) -> Gaussian:
        """End law of the optimally tuned eta-sampler started from x_t ~ ``start`` at time t, in continuous time.

        The tilt acts on the end point given the start, but cannot move the start: where the base process remembers it
        (k != 0), the end law is not the tilted law. This is the initial value-function bias.
        """
        k, S = self.transition(self.process(t))
        alpha, one = self.process(t).alpha, torch.eye(self.law.d, dtype=torch.float64)
        mix = torch.linalg.inv(one + S @ self.reward.A / self.beta)
        M = self.law.mean + k @ (start.mean - alpha * self.law.mean)
        cov = mix @ S + mix @ k @ start.cov @ k.mT @ mix.mT
        return Gaussian(mix @ (M + S @ self.reward.b / self.beta), 0.5 * (cov + cov.mT))

    def deployed_law(self, start: Gaussian, rho: float, eta_deploy: float, factor: float = 1.0) -> Gaussian:
        """End law of the eta'-sampler with score ``s + factor * Delta s``, started from ``y ~ start`` at ratio rho.

        The moments of ``(C + rho^2)^{-1/2} (y - m)``, which the untuned sampler keeps at 0 and 1, obey linear
        differential equations in ``u = log rho``, integrated to 1e-12 and stopped where rho^2 is 1e-18 of the smallest
        variance. A start at pure noise (alpha = 0) is a large rho, up to 1e150.
        """
        d, e = self.law.d, eta_deploy**2
        m, lam, basis = self.law.mean.numpy(), self.law.eigenvalues[0].numpy(), self.law.eigenvectors[0].numpy()
        A, b, mine = self.reward.A.numpy(), self.reward.b.numpy(), self.eta**2
        strength = (1 + e) * factor * 2 * mine / (1 + mine) / self.beta

        def turn(values: np.ndarray) -> np.ndarray:
            return basis * values @ basis.T

        def field(u: float, z: np.ndarray) -> np.ndarray:
            r2 = np.exp(2 * u)
            w = lam / (lam + r2)
            noise = r2 / (lam + r2)
            # M = m + seen x and the pull of the control, rho^2 (C + rho^2)^{-1/2} k^T (I + A S / beta)^{-1} (b - A M).
            seen, S = turn(lam**0.5 * w ** (mine / 2)), turn(lam * (1 - w**mine))
            lever = strength * turn(lam**0.5 * noise * w ** (mine / 2)) @ np.linalg.inv(np.eye(d) + A @ S / self.beta)
            mean, cov = z[:d], z[d:].reshape(d, d)
            pull = e * turn(noise) + lever @ A @ seen
            spread = pull @ cov + cov @ pull.T - 2 * e * turn(noise)
            return np.concatenate([pull @ mean - lever @ (b - A @ m), spread.ravel()])

        white = turn((lam + rho**2) ** -0.5)
        # Above `top` the control is below 1e-18 and the untuned sampler forgets at the rate eta'^2 in log rho.
        top = min(np.log(rho), 41.5 / mine + 0.5 * np.log(lam.max()))
        kept = np.exp(-e * (np.log(rho) - top))
        mean = kept * white @ (start.mean.numpy() - m)
        cov = np.eye(d) + kept**2 * (white @ start.cov.numpy() @ white - np.eye(d))
        z0 = np.concatenate([mean, cov.ravel()])
        span = (top, 0.5 * np.log(1e-18 * lam.min()))
        z = solve_ivp(field, span, z0, method="DOP853", rtol=1e-12, atol=1e-13, max_step=0.5).y[:, -1]
        root = turn(lam**0.5)
        end = torch.from_numpy(root @ z[d:].reshape(d, d) @ root)
        return Gaussian(torch.from_numpy(m + root @ z[:d]), 0.5 * (end + end.mT))


def mixture_value(law: Mixture, reward: QuadraticReward, beta: float, process: Process, x: Tensor, t: Tensor) -> Tensor:
    """``V_1 = beta log E[exp(r(x_0) / beta) | x_t]`` on a mixture at eta = 1: float64 [B], differentiable in x [B, *D].

    Given x_t, x_0 is a mixture of Gaussians, each with its closed form. The optimal velocity, ``v - (g^2 / 2) grad V_1
    / beta``, is the velocity of the tilted mixture.
    """
    c = process(t.expand(len(x)))
    post = law.posterior(x, c.alpha, c.sigma)
    logs = log_mean_exp(reward, check_beta(beta), post.means, law.posterior_covs(c.alpha, c.sigma))
    return beta * torch.logsumexp(post.log_weights + logs, 1)
