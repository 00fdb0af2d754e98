r"""Distances between two sets of samples, from features [N, F] (any tensors [N, *D] are flattened).

==================  =====================================================================================
frechet             ``|m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^{1/2})``: squared 2-Wasserstein of the fitted Gaussians
kid                 unbiased MMD^2 with kernel ``(x.y / F + 1)^3``
mmd                 unbiased MMD^2 with kernel ``exp(-|x - y|^2 / (2 h^2))``
sliced_wasserstein  ``(mean_u W_2(<u, X>, <u, Y>)^2)^{1/2}`` over directions u
==================  =====================================================================================

.. math:: MMD^2 = \frac{1}{n(n-1)} \sum_{i \ne j} k(x_i, x_j) + \frac{1}{m(m-1)} \sum_{i \ne j} k(y_i, y_j)
    - \frac{2}{nm} \sum_{ij} k(x_i, y_j)

All in float64. The Frechet distance is biased upwards at small N (compare at equal N); MMD^2 is not, and may be
negative.

References: Dowson & Landau 1982, doi:10.1016/0047-259X(82)90077-X; Heusel et al. 2017, arXiv:1706.08500 (FID); Gretton
et al. 2012, JMLR 13, Eq. 3; Binkowski et al. 2018, arXiv:1801.01401 (KID); Bonneel et al. 2015,
doi:10.1007/s10851-014-0506-3.
"""

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.precision import as_wide


def rows(x: Tensor, least: int = 2) -> Tensor:
    """Samples [N, *D] as float64 features [N, F]; raises GirsanovError if there are too few or one is not finite."""
    if x.ndim < 2 or len(x) < least:
        raise GirsanovError(f"this measure needs at least {least} samples [N, *D], got shape {list(x.shape)}")
    x = as_wide(x.detach().flatten(1))
    if not bool(x.isfinite().all()):
        raise GirsanovError(
            "this measure got features that are not finite: look at the samples and the feature function"
        )
    return x


def pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two sets of features of equal width; raises GirsanovError otherwise."""
    x, y = rows(x), rows(y)
    if x.shape[1] != y.shape[1]:
        raise GirsanovError(f"two sets of samples must have equal size each: {x.shape[1]} and {y.shape[1]} numbers")
    return x, y.to(x.device)


def frechet(x: Tensor, y: Tensor) -> float:
    """Frechet distance of the Gaussians fitted to x [N, *D] and y [M, *D] (the squared distance, as FID is)."""
    x, y = pair(x, y)
    return frechet_gaussian(x.mean(0), torch.cov(x.T), y.mean(0), torch.cov(y.T))


def frechet_gaussian(m1: Tensor, c1: Tensor, m2: Tensor, c2: Tensor) -> float:
    """The same of two Gaussians, from means [F] and covariances [F, F]."""
    c1, c2 = torch.atleast_2d(c1), torch.atleast_2d(c2)
    values, vectors = torch.linalg.eigh(c1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ c2 @ root).clamp(min=0).sqrt().sum()  # tr (C1 C2)^(1/2)
    return max(0.0, float((m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * cross))


def _unbiased(xx: Tensor, yy: Tensor, xy: Tensor) -> float:
    n, m = xy.shape
    within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def kid(x: Tensor, y: Tensor) -> float:
    """Kernel (Inception) distance of x [N, *D] and y [M, *D]: unbiased, 0 in the mean for equal laws."""
    x, y = pair(x, y)
    width = x.shape[1]
    return _unbiased(*((a @ b.T / width + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))))


def mmd(x: Tensor, y: Tensor, bandwidth: float | None = None) -> float:
    """MMD^2 of x [N, *D] and y [M, *D] with a Gaussian kernel; bandwidth h, the median distance in y by default."""
    x, y = pair(x, y)
    if bandwidth is None:
        bandwidth = float(torch.pdist(y).median())
    if not bandwidth > 0:
        raise GirsanovError(
            f"the bandwidth of a kernel must be positive, not {bandwidth}: give one, the data has no spread"
        )
    return _unbiased(*((-((torch.cdist(a, b) / bandwidth) ** 2) / 2).exp() for a, b in ((x, x), (y, y), (x, y))))


def sliced_wasserstein(x: Tensor, y: Tensor, directions: int = 128, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance of x [N, *D] and y [M, *D] over random directions of a seed."""
    x, y = pair(x, y)
    g = torch.Generator().manual_seed(seed)
    u = torch.randn(x.shape[1], directions, generator=g, dtype=x.dtype).to(x.device)
    return sliced_along(x, y, u / u.norm(dim=0))


def sliced_along(x: Tensor, y: Tensor, u: Tensor) -> float:
    """The same along given unit directions u [F, K]: exact in one dimension, for any N and M.

    Both quantile functions are step functions; their squared difference is integrated over the union of the steps.
    """
    x, y = pair(x, y)
    a, b = (x @ u).sort(0).values, (y @ u).sort(0).values
    n, m = len(a), len(b)
    levels = torch.cat(
        [torch.arange(1, n + 1, device=x.device) * m, torch.arange(1, m + 1, device=x.device) * n]
    ).unique()
    weight = as_wide(torch.diff(levels, prepend=levels.new_zeros(1))) / (n * m)
    left = levels - 1  # the level just below the end of its interval, in units of 1 / (n m)
    gap = a[left // m] - b[left // n]
    return float((weight @ gap.square()).mean().sqrt())
