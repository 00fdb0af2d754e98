r"""Diversity, coverage and memorising of a set of samples, from features [N, F] (any tensors [N, *D] are flattened).

With ``r_k(y)`` the distance of y to its k-th nearest neighbour within its own set,

.. math::
    precision &= mean_x\, 1[\exists y: |x - y| \le r_k(y)], \qquad
    recall = mean_y\, 1[\exists x: |x - y| \le r_k(x)] \\
    density &= \frac1k mean_x \sum_y 1[|x - y| \le r_k(y)], \qquad
    coverage = mean_y\, 1[\exists x: |x - y| \le r_k(y)] \\
    vendi &= \exp\big(- \textstyle\sum_i \lambda_i \log \lambda_i\big), \quad \lambda = eigenvalues(K / N)

where x are samples and y real data. ``vendi`` is the effective number of different samples: 1 if all are alike, N if
no two are (K is the kernel of their similarities, 1 on its diagonal). Diversity within classes is the mean distance of
two samples of one class, averaged over classes; compare it with that of the pretrained model.

References: Kynkaanniemi et al. 2019, arXiv:1904.06991 (precision, recall); Naeem et al. 2020, arXiv:2002.09797
(density, coverage); Friedman & Dieng 2023, arXiv:2210.02410 (Vendi).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.evaluation.distances import pair, rows
from girsanov.precision import as_wide


def pairwise(x: Tensor) -> float:
    """Mean distance of two different samples of x [N, *D]."""
    return float(torch.pdist(rows(x)).mean())


def within_class(x: Tensor, labels: Tensor) -> Tensor:
    """Mean distance of two samples of each class, [C]; NaN for a class with fewer than two."""
    x, labels = rows(x), labels.to(x.device)
    if len(labels) != len(x):
        raise GirsanovError(f"{len(labels)} labels for {len(x)} samples: give one label a sample")
    return torch.stack([torch.pdist(x[labels == c]).mean() for c in range(int(labels.max()) + 1)])


def nearest(x: Tensor, data: Tensor) -> Tensor:
    """Distance of each sample [N, *D] to its nearest neighbour in the training data [M, *D]: float64 [N].

    Samples that lie closer to the training data than fresh real data do are memorised.
    """
    x, data = rows(x, 1), rows(data, 1)
    if x.shape[1] != data.shape[1]:
        raise GirsanovError(f"samples and data must have equal size each: {x.shape[1]} and {data.shape[1]} numbers")
    return torch.cdist(x, data.to(x.device)).min(1).values


@dataclass(frozen=True)
class Manifold:
    """Precision, recall, density and coverage of samples against real data."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(x: Tensor, real: Tensor, k: int = 5) -> Manifold:
    """How the samples x [N, *D] and the real data [M, *D] cover each other, with k nearest neighbours."""
    x, y = pair(x, real)
    if not 1 <= k < min(len(x), len(y)):
        raise GirsanovError(f"k = {k} nearest neighbours need more than {k} samples: there are {len(x)} and {len(y)}")
    r_x, r_y = (
        torch.cdist(z, z).kthvalue(k + 1, dim=1).values for z in (x, y)
    )  # the first neighbour is the point itself
    distance = torch.cdist(x, y)
    near_real, near_sample = distance <= r_y, distance <= r_x[:, None]
    return Manifold(
        precision=float(as_wide(near_real.any(1)).mean()),
        recall=float(as_wide(near_sample.any(0)).mean()),
        density=float(as_wide(near_real).sum(1).mean() / k),
        coverage=float(as_wide(near_real.any(0)).mean()),
    )


def vendi(x: Tensor) -> float:
    """Vendi score of x [N, *D] with the cosine similarity of features."""
    x = rows(x)
    length = x.norm(dim=1, keepdim=True)
    if bool((length == 0).any()):
        raise GirsanovError("the Vendi score of a zero feature is not defined: centre or shift the features")
    x = x / length
    gram = x.T @ x if x.shape[1] < len(x) else x @ x.T  # equal eigenvalues but for zeros
    return effective_number(torch.linalg.eigvalsh(gram / len(x)))


def vendi_of_kernel(K: Tensor) -> float:
    """Vendi score of a similarity matrix K [N, N] with ones on its diagonal."""
    if K.ndim != 2 or K.shape[0] != K.shape[1] or not torch.allclose(K.diagonal(), torch.ones_like(K.diagonal())):
        raise GirsanovError("a similarity matrix is square with ones on its diagonal")
    return effective_number(torch.linalg.eigvalsh(K.cpu().double() / len(K)))


def effective_number(weights: Tensor) -> float:
    """``exp`` of the entropy of non-negative weights that sum to 1."""
    w = weights.clamp(min=0)
    return float(torch.exp(-torch.special.xlogy(w, w).sum()))
