r"""Data laws whose noised marginals, posteriors and networks are known: Gaussian mixtures in d dimensions.

With ``x_t = alpha x_0 + sigma eps`` and ``x_0 ~ sum_k w_k N(m_k, C_k)`` the noised law is a mixture again, and given
the component

.. math:: S_k = \alpha^2 C_k + \sigma^2 I, \quad
    E[x_0 | x_t, k] = m_k + \alpha C_k S_k^{-1} (x_t - \alpha m_k), \quad
    E[\epsilon | x_t, k] = \sigma S_k^{-1} (x_t - \alpha m_k)

Posterior weights are ``gamma_k ~ w_k N(x_t; alpha m_k, S_k)``, and every prediction is a weighted sum. Nothing is
divided by alpha or sigma, so the predictions hold at both ends of time. All arithmetic is float64, in the eigenbases of
the C_k.

Reference: these are textbook formulas (conditioning of Gaussians); Song et al. 2021, arXiv:2011.13456, for the
    predictions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.models import Model
from girsanov.predictions import Prediction, row
from girsanov.processes import Process, Schedule
from girsanov.types import Cond

Array = Tensor | Sequence[Any] | float
"""Numbers that become a float64 tensor."""


def as_array(value: Array) -> Tensor:
    """A float64 tensor on the host."""
    return torch.as_tensor(value, dtype=torch.float64).detach().cpu()


@dataclass(frozen=True)
class Posterior:
    """Law of ``x_0`` given ``x_t``: a mixture of K Gaussians for each of B states.

    Attributes:
        log_weights: log posterior weights, [B, K], normalised.
        means: posterior mean of each component, [B, K, d].
        eps: mean of the noise given the component, [B, K, d].
        score: score of the noised component, [B, K, d].
        log_evidence: log density of the noised law at the states, [B].
    """

    log_weights: Tensor
    means: Tensor
    eps: Tensor
    score: Tensor
    log_evidence: Tensor

    def average(self, values: Tensor) -> Tensor:
        """``sum_k gamma_k values_k`` for values [B, K, d]: shape [B, d]."""
        return (self.log_weights.exp().unsqueeze(-1) * values).sum(1)


class Mixture:
    """Mixture of K Gaussians in d dimensions.

    Args:
        weights: [K], positive; normalised to sum 1.
        means: [K, d].
        covs: [K, d, d], symmetric and positive definite.

    Raises:
        GirsanovError: shapes that do not fit, weights that are not positive, a covariance that is not positive
            definite.
    """

    def __init__(self, weights: Array, means: Array, covs: Array) -> None:
        w, m, c = as_array(weights), as_array(means), as_array(covs)
        if w.ndim != 1 or m.ndim != 2 or c.shape != (*m.shape, m.shape[-1]) or len(w) != len(m):
            raise GirsanovError(
                f"a mixture takes weights [K], means [K, d] and covariances [K, d, d], not {list(w.shape)}, "
                f"{list(m.shape)} and {list(c.shape)}"
            )
        if not bool((w > 0).all()):
            raise GirsanovError(
                "the weights of a mixture must be positive: leave a component out instead of giving it none"
            )
        if not torch.allclose(c, c.mT):
            raise GirsanovError("a covariance must be symmetric: give (C + C^T) / 2")
        self.weights, self.means, self.covs = w / w.sum(), m, 0.5 * (c + c.mT)
        self.eigenvalues, self.eigenvectors = torch.linalg.eigh(self.covs)  # [K, d], [K, d, d]
        if not bool((self.eigenvalues > 0).all()):
            raise GirsanovError("a covariance must be positive definite: add a small multiple of the identity")

    @property
    def d(self) -> int:
        """Number of dimensions."""
        return self.means.shape[-1]

    @property
    def mean(self) -> Tensor:
        """Mean, [d]."""
        return self.weights @ self.means

    @property
    def cov(self) -> Tensor:
        """Covariance, [d, d]."""
        centred = self.means - self.mean
        return torch.einsum("k,kij->ij", self.weights, self.covs + centred.unsqueeze(-1) * centred.unsqueeze(-2))

    def noised(self, alpha: float, sigma: float) -> "Mixture":
        """The law of ``alpha x_0 + sigma eps``."""
        return make_law(
            self.weights, alpha * self.means, alpha**2 * self.covs + sigma**2 * torch.eye(self.d, dtype=torch.float64)
        )

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at x [B, *D], float64 [B]."""
        one = torch.ones(len(x), dtype=torch.float64, device=x.device)
        return self.posterior(x, one, torch.zeros_like(one)).log_evidence

    def score(self, x: Tensor, c: Schedule) -> Tensor:
        """Score of the noised law at x [B, *D] and a schedule of shape [] or [B], in the shape and dtype of x."""
        post = self.posterior(x, c.alpha, c.sigma)
        return post.average(post.score).to(x.dtype).view_as(x)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n independent draws, float64 [n, d]."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.d, dtype=torch.float64, generator=generator)
        root = self.eigenvectors * self.eigenvalues.sqrt().unsqueeze(-2)
        return self.means[k] + torch.einsum("nij,nj->ni", root[k], z)

    def posterior(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Posterior:
        """Law of x_0 given noised states x [B, *D] at schedules of shape [] or [B]; differentiable in x."""
        y = x.reshape(len(x), 1, -1).double()
        if y.shape[-1] != self.d:
            raise GirsanovError(f"this law has {self.d} dimensions, the states have {y.shape[-1]}")
        a, s = (v.to(y).expand(len(x)).reshape(-1, 1, 1) for v in (alpha, sigma))
        m, lam, basis = self.means.to(y), self.eigenvalues.to(y), self.eigenvectors.to(y)
        variance = a**2 * lam + s**2  # [B, K, d], never zero
        z = torch.einsum("bkd,kde->bke", y - a * m, basis)
        white = z / variance
        log_joint = self.weights.to(y).log() - 0.5 * (z * white + variance.log()).sum(-1)
        evidence = torch.logsumexp(log_joint, 1)
        turn = "bke,kde->bkd"
        return Posterior(
            log_joint - evidence.unsqueeze(1),
            m + a * torch.einsum(turn, lam * white, basis),
            s * torch.einsum(turn, white, basis),
            -torch.einsum(turn, white, basis),
            evidence - 0.5 * self.d * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64)).to(y),
        )

    def posterior_covs(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Covariance of x_0 given x_t and the component, ``sigma^2 C S^{-1}``, at schedules [B]: [B, K, d, d]."""
        a, s = alpha.reshape(-1, 1, 1), sigma.reshape(-1, 1, 1)
        spread = s**2 * self.eigenvalues / (a**2 * self.eigenvalues + s**2)
        return torch.einsum("kij,bkj,klj->bkil", self.eigenvectors, spread, self.eigenvectors)

    def net(self, process: Process, prediction: Prediction) -> Callable[[Tensor, Tensor, Any], Tensor]:
        """The exact network ``net(x [B, *D], t [B], cond)`` of a prediction kind, in the dtype of x."""

        def exact(x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
            c = process(t)
            post = self.posterior(x, c.alpha, c.sigma)
            if prediction == "score":  # its table entry 1 / sigma is infinite at t = 0, the score itself is not
                return post.average(post.score).to(x.dtype).view_as(x)
            a, b = (v.to(post.means).expand(len(x)).reshape(-1, 1, 1) for v in row(c, prediction))
            return post.average(a * post.means + b * post.eps).to(x.dtype).view_as(x)

        return exact

    def model(
        self, process: Process, prediction: Prediction = "velocity", shape: tuple[int, ...] | None = None
    ) -> Model:
        """The exact model of this law; ``shape`` arranges the d dimensions (default ``(d,)``)."""
        row(process(0.5), prediction)  # raises on an unknown name
        shape = (self.d,) if shape is None else shape
        if torch.Size(shape).numel() != self.d:
            raise GirsanovError(f"shape {list(shape)} does not hold the law's {self.d} dimensions")
        return Model(self.net(process, prediction), process, prediction, shape)


class Gaussian(Mixture):
    """The normal law N(mean, cov).

    Args:
        mean: [d] (or a number in one dimension).
        cov: [d, d] (or the variance, a number, in one dimension).
    """

    def __init__(self, mean: Array, cov: Array) -> None:
        m, c = torch.atleast_1d(as_array(mean)), torch.atleast_2d(as_array(cov))
        super().__init__(torch.ones(1), m.unsqueeze(0), c.unsqueeze(0))

    def __repr__(self) -> str:
        return f"Gaussian({self.means[0].tolist()}, {self.covs[0].tolist()})"


def make_law(weights: Tensor, means: Tensor, covs: Tensor) -> Mixture:
    """A Mixture, or a Gaussian if there is one component."""
    return Gaussian(means[0], covs[0]) if len(weights) == 1 else Mixture(weights, means, covs)


class Classes:
    """Class-conditional data: one law a class, chosen by the condition ``label`` (int64, one number a sample).

    The label ``len(laws)`` is the null class of guidance: the mixture of all classes by their ``prior``.
    """

    def __init__(self, laws: Sequence[Mixture], prior: Array | None = None) -> None:
        if not laws or len({law.d for law in laws}) != 1:
            raise GirsanovError("classes need at least one law, all of the same number of dimensions")
        p = torch.ones(len(laws), dtype=torch.float64) if prior is None else as_array(prior)
        if p.shape != (len(laws),):
            raise GirsanovError(f"{len(laws)} classes need as many prior weights, not {list(p.shape)}")
        self.laws, self.prior = tuple(laws), p / p.sum()
        weights = torch.cat([q * law.weights for q, law in zip(self.prior, self.laws, strict=True)])
        self.pooled = make_law(weights, torch.cat([a.means for a in self.laws]), torch.cat([a.covs for a in self.laws]))

    @property
    def d(self) -> int:
        """Number of dimensions."""
        return self.pooled.d

    def cond(self, labels: Array, null: bool = False) -> Cond:
        """Conditions for samples of the given classes [B]; ``null`` adds the branch that guidance needs."""
        index = torch.as_tensor(labels, dtype=torch.int64)
        table = {"label": torch.arange(len(self.laws) + 1)}
        return Cond(table, index, Cond(table, torch.full_like(index, len(self.laws))) if null else None)

    def model(
        self, process: Process, prediction: Prediction = "velocity", shape: tuple[int, ...] | None = None
    ) -> Model:
        """The exact class-conditional model."""
        models = [law.model(process, prediction, shape) for law in (*self.laws, self.pooled)]

        def exact(x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
            if cond is None:
                raise GirsanovError("a class-conditional law needs conditions with a label: give Classes.cond(labels)")
            every = torch.stack([model.net(x, t, None) for model in models])
            return every[cond["label"].to(x.device), torch.arange(len(x), device=x.device)]

        return Model(exact, process, prediction, models[0].shape)
