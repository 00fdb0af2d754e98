r"""Quadratic rewards, and the laws they tilt: the exact answer of reward fine-tuning.

For ``r(x) = -x^T A x / 2 + b^T x`` and ``x ~ N(M, S)``, with ``P = A / beta`` and ``q = b / beta``,

.. math:: \log E[e^{r/\beta}] = -\tfrac12 \log\det(I + S P) + \tfrac12 (q - P M)^T (I + S P)^{-1} S (q - P M)
    + q^T M - \tfrac12 M^T P M

and the tilted law ``N(M, S) exp(r / beta) / Z`` is Gaussian with

.. math:: S^* = (I + S P)^{-1} S, \qquad M^* = (I + S P)^{-1} (M + S q)

A mixture stays a mixture: each component tilts, and its weight is multiplied by its own Z. The frontier follows,
because ``KL(tilt || law) = E_tilt[r] / beta - log Z`` and no law of the same KL has a higher expected reward.

Reference: textbook (exponential tilting); Uehara et al. 2024, arXiv:2402.16359, for its role in fine-tuning.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.problems.laws import Array, Gaussian, Mixture, as_array, make_law
from girsanov.rewards.base import Reward
from girsanov.types import Prompts


class QuadraticReward(Reward):
    """``r(x) = -x^T A x / 2 + b^T x``, differentiable; data of any shape is flattened to d dimensions.

    Args:
        A: [d, d] (or a number), symmetrised; it may be indefinite.
        b: [d] (or a number).
    """

    name = "quadratic"
    differentiable = True

    def __init__(self, A: Array, b: Array) -> None:
        matrix, vector = torch.atleast_2d(as_array(A)), torch.atleast_1d(as_array(b))
        if matrix.shape != (len(vector), len(vector)):
            raise GirsanovError(f"a reward takes A [d, d] and b [d], not {list(matrix.shape)} and {list(vector.shape)}")
        self.A, self.b = 0.5 * (matrix + matrix.mT), vector

    def __call__(self, x: Tensor, prompts: Prompts | None = None) -> Tensor:
        """Reward of every sample, [B] in the dtype of x."""
        y = x.flatten(1)
        if y.shape[1] != len(self.b):
            raise GirsanovError(f"this reward reads {len(self.b)} dimensions, the samples have {y.shape[1]}")
        return y @ self.b.to(y) - 0.5 * torch.einsum("bi,ij,bj->b", y, self.A.to(y), y)

    def expected(self, mean: Tensor, cov: Tensor) -> Tensor:
        """``E r(x)`` of any law with the given moments, [d] and [d, d]."""
        return self.b @ mean - 0.5 * (mean @ self.A @ mean + (self.A * cov).sum())


class LinearReward(QuadraticReward):
    """``r(x) = b^T x``."""

    name = "linear"

    def __init__(self, b: Array) -> None:
        vector = torch.atleast_1d(as_array(b))
        super().__init__(torch.zeros(len(vector), len(vector)), vector)


def check_beta(beta: float) -> float:
    """beta, if it is positive."""
    if not beta > 0:
        raise GirsanovError(f"beta weighs a KL and must be positive, not {beta}")
    return beta


def log_mean_exp(reward: QuadraticReward, beta: float, M: Tensor, S: Tensor) -> Tensor:
    """``log E exp(r(x) / beta)`` for ``x ~ N(M, S)``: M [..., d], S [..., d, d] (may be singular), result [...].

    Raises GirsanovError where the expectation is infinite.
    """
    P, q, one = reward.A / beta, reward.b / beta, torch.eye(len(reward.b), dtype=torch.float64)
    mix = one + S @ P
    # I + S^(1/2) P S^(1/2) has the eigenvalues of I + S P: all must be positive, or the integral diverges.
    if not bool((torch.linalg.eigvals(mix).real > 0).all()):
        raise GirsanovError(
            "exp(r / beta) has no finite mean under this law: raise beta, or give a reward that curves down"
        )
    g = q - M @ P
    gain = torch.linalg.solve(mix, (S @ g.unsqueeze(-1))).squeeze(-1)
    return -0.5 * torch.logdet(mix) + 0.5 * (g * gain).sum(-1) + M @ q - 0.5 * (M @ P * M).sum(-1)


def tilt(law: Mixture, reward: QuadraticReward, beta: float) -> Mixture:
    """``law exp(r / beta) / Z``: the solution of ``max E r - beta KL(. || law)``; a Gaussian stays a Gaussian.

    Raises GirsanovError if beta is not positive or Z is infinite.
    """
    log_z = log_mean_exp(reward, check_beta(beta), law.means, law.covs)
    mix = torch.eye(law.d, dtype=torch.float64) + law.covs @ reward.A / beta
    covs = torch.linalg.solve(mix, law.covs)
    means = torch.linalg.solve(mix, (law.means + law.covs @ reward.b / beta).unsqueeze(-1)).squeeze(-1)
    return make_law(torch.softmax(law.weights.log() + log_z, 0), means, 0.5 * (covs + covs.mT))


def log_partition(law: Mixture, reward: QuadraticReward, beta: float) -> Tensor:
    """``log Z = log E_law exp(r / beta)``, shape []."""
    return torch.logsumexp(law.weights.log() + log_mean_exp(reward, check_beta(beta), law.means, law.covs), 0)


def expected_reward(law: Mixture, reward: QuadraticReward) -> Tensor:
    """``E_law r``, shape []."""
    return reward.expected(law.mean, law.cov)


def gaussian_kl(p: Gaussian, q: Gaussian) -> Tensor:
    """``KL(p || q)`` of two Gaussians, shape []."""
    gap, inverse = q.mean - p.mean, torch.linalg.inv(q.cov)
    return 0.5 * ((inverse * p.cov).sum() - p.d + gap @ inverse @ gap + torch.logdet(q.cov) - torch.logdet(p.cov))


def tilt_kl(law: Mixture, reward: QuadraticReward, beta: float) -> Tensor:
    """``KL(tilt || law) = E_tilt[r] / beta - log Z``, exact for mixtures too; shape []."""
    return expected_reward(tilt(law, reward, beta), reward) / beta - log_partition(law, reward, beta)


@dataclass(frozen=True)
class Frontier:
    """The best expected reward at every KL to the law, swept by beta: three tensors [n]."""

    beta: Tensor
    kl: Tensor
    reward: Tensor


def frontier(law: Mixture, reward: QuadraticReward, betas: Sequence[float] | Tensor) -> Frontier:
    """The exact reward-KL frontier at the given beta."""
    values = as_array(betas)
    tilts = [tilt(law, reward, float(b)) for b in values]
    kl = torch.stack([tilt_kl(law, reward, float(b)) for b in values])
    return Frontier(values, kl, torch.stack([expected_reward(p, reward) for p in tilts]))
