r"""Affine Gaussian policies ``a ~ N(slope x + offset, covariance)``; moments and quadratic forms in ``y = (x, 1)``."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class AffinePolicy:
    """``a ~ N(slope x + offset, covariance)``; float64.

    Attributes:
        slope: [m, n].
        offset: [m].
        covariance: [m, m], positive definite.
    """

    slope: Tensor
    offset: Tensor
    covariance: Tensor

    @staticmethod
    def scalar(slope: float, offset: float, variance: float) -> "AffinePolicy":
        """The policy of one state and one action."""
        return AffinePolicy(*(torch.tensor(v, dtype=torch.float64) for v in ([[slope]], [offset], [[variance]])))

    def mean(self, x: Tensor) -> Tensor:
        """``slope x + offset``, [B, m], in the dtype of x [B, n]."""
        return x @ self.slope.to(x).T + self.offset.to(x)


@dataclass(frozen=True, eq=False)
class Occupation:
    """Moments of the discounted occupation measure ``d(dx) = int e^(-beta t) P(X_t in dx) dt``, of mass 1 / beta.

    Attributes:
        L0: mass, [].
        L1: ``int x d(dx)``, [n].
        L2: ``int x x' d(dx)``, [n, n].
    """

    L0: Tensor
    L1: Tensor
    L2: Tensor

    @property
    def matrix(self) -> Tensor:
        """``[[L2, L1], [L1', L0]]``, [n + 1, n + 1]."""
        return torch.cat([torch.cat([self.L2, self.L1[:, None]], 1), torch.cat([self.L1, self.L0[None]])[None]])


def symmetric(matrix: Tensor) -> Tensor:
    """The symmetric part of matrices [..., n, n]."""
    return (matrix + matrix.transpose(-1, -2)) / 2


def positive(matrix: Tensor) -> bool:
    """Whether a matrix is symmetric and positive definite."""
    close = torch.allclose(matrix, matrix.T, rtol=1e-9, atol=1e-12)
    return close and bool(torch.linalg.eigvalsh(symmetric(matrix)).min() > 0)


def homogeneous(x: Tensor) -> Tensor:
    """``y = (x, 1)``, float64 [B, n + 1]."""
    return torch.cat([x.double(), torch.ones_like(x[:, :1], dtype=torch.float64)], 1)


def form(matrix: Tensor, z: Tensor) -> Tensor:
    """``z' matrix z / 2`` for the rows of z, [B]."""
    return ((z @ matrix.to(z.device)) * z).sum(1) / 2
