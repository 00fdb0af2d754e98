"""Distances and diversity against closed forms, independent implementations, and their own expectations."""

import math

import numpy as np
import ot
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.evaluation import frechet, frechet_gaussian, kid, mmd, sliced_wasserstein, vendi
from girsanov.evaluation.distances import sliced_along
from girsanov.evaluation.diversity import manifold, nearest, pairwise, vendi_of_kernel, within_class
from girsanov.evaluation.metrics import ONE_SAMPLE, TWO_SAMPLE, measure


def normal(n: int, d: int, seed: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return mean + std * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(d: int, seed: int) -> Tensor:
    a = normal(d, d, seed)
    return a @ a.T / d + 0.1 * torch.eye(d, dtype=torch.float64)


def test_frechet_of_gaussians_is_the_closed_form() -> None:
    """Commuting covariances by hand; general ones against scipy's matrix square root."""
    a, b = torch.tensor([1.0, 4.0, 0.25]).double(), torch.tensor([4.0, 1.0, 0.0]).double()
    m = torch.tensor([1.0, 0.0, -2.0]).double()
    by_hand = 5.0 + float((a.sqrt() - b.sqrt()).square().sum())
    assert frechet_gaussian(m, a.diag(), torch.zeros(3).double(), b.diag()) == pytest.approx(by_hand, rel=1e-12)
    c1, c2 = covariance(5, 0), covariance(5, 1)
    zero = torch.zeros(5, dtype=torch.float64)
    root = np.trace(sqrtm((c1 @ c2).numpy())).real
    assert frechet_gaussian(zero, c1, zero, c2) == pytest.approx(float(c1.trace() + c2.trace()) - 2 * root, rel=1e-9)
    assert frechet_gaussian(m, a.diag(), m, a.diag()) == pytest.approx(0.0, abs=1e-12)


def test_frechet_of_samples_uses_their_moments() -> None:
    x, y = normal(300, 4, 0), normal(200, 4, 1, mean=0.5, std=1.5)
    expected = frechet_gaussian(
        x.mean(0), torch.from_numpy(np.cov(x.numpy().T)), y.mean(0), torch.from_numpy(np.cov(y.numpy().T))
    )
    assert frechet(x.reshape(300, 2, 2), y.reshape(200, 2, 2)) == pytest.approx(expected, rel=1e-12)
    assert frechet(x, x + 2.0) == pytest.approx(16.0, rel=1e-9)
    wide = normal(20, 50, 2)  # fewer samples than features: covariances of low rank
    assert frechet(wide, wide) == pytest.approx(0.0, abs=1e-6)


def test_kid_is_its_formula() -> None:
    """Written out with loops, 7 against 5 samples."""
    x, y = normal(7, 3, 0), normal(5, 3, 1, mean=0.3)

    def k(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    xx = sum(k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / (7 * 6)
    yy = sum(k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / (5 * 4)
    xy = sum(k(a, b) for a in x for b in y) / 35
    assert kid(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-12)


@pytest.mark.parametrize("mean", [0.0, 0.7])
def test_mmd_is_unbiased_for_its_closed_form(mean: float) -> None:
    """N(0, I) against N(mean, 1.3^2 I), d = 3, h = 1.5: mean of 200 estimates of 40 samples, within 4 standard errors.

    E k(x, y) = (h^2 / (h^2 + s^2))^(d/2) exp(-|gap|^2 / (2 (h^2 + s^2))), s^2 the variance of x - y.
    """
    d, h, std = 3, 1.5, 1.3

    def k(variance: float, gap: float) -> float:
        total = h**2 + variance
        return (h**2 / total) ** (d / 2) * math.exp(-d * gap**2 / (2 * total))

    exact = k(2.0, 0.0) + k(2 * std**2, 0.0) - 2 * k(1 + std**2, mean)
    found = torch.tensor([mmd(normal(40, d, 2 * i), normal(40, d, 2 * i + 1, mean, std), h) for i in range(200)])
    assert abs(float(found.mean()) - exact) < 4 * float(found.std()) / math.sqrt(200)


def test_sliced_wasserstein_agrees_with_an_independent_implementation() -> None:
    """POT along the same directions: equal and unequal numbers of samples."""
    u = normal(4, 25, 5)
    u = u / u.norm(dim=0)
    for n, m in ((60, 60), (60, 37), (12, 30)):
        x, y = normal(n, 4, 0), normal(m, 4, 1, mean=0.4, std=2.0)
        expected = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=u.numpy())
        assert sliced_along(x, y, u) == pytest.approx(float(expected), rel=1e-9)


def test_sliced_wasserstein_of_a_shift_and_of_itself() -> None:
    """A shift c moves every projection by <u, c>: the mean of <u, c>^2 is |c|^2 / d; 4,000 directions, 2 %."""
    x = normal(50, 6, 0)
    shift = torch.tensor([1.0, -2.0, 0.5, 0.0, 0.0, 1.0]).double()
    assert sliced_wasserstein(x, x) == 0.0
    expected = float(shift.norm()) / math.sqrt(6)
    assert sliced_wasserstein(x, x + shift, directions=4000) == pytest.approx(expected, rel=0.02)


def test_pairwise_distance_of_a_gaussian_line() -> None:
    """Mean distance of two normal numbers is 2 s / sqrt(pi); 2,000 samples, tolerance 3 % (about 3 standard errors)."""
    assert pairwise(normal(2000, 1, 0, std=1.7)) == pytest.approx(2 * 1.7 / math.sqrt(math.pi), rel=0.03)
    x = torch.tensor([[0.0], [1.0], [10.0], [14.0], [5.0]])
    per_class = within_class(x, torch.tensor([0, 0, 1, 1, 2]))
    assert per_class[:2].tolist() == [1.0, 4.0] and bool(per_class[2].isnan())


def test_nearest_is_the_smallest_distance() -> None:
    x, y = normal(9, 3, 0), normal(14, 3, 1)
    expected = [min(float((a - b).norm()) for b in y) for a in x]
    assert nearest(x, y).tolist() == pytest.approx(expected)
    assert nearest(y[:4], y).tolist() == pytest.approx([0.0] * 4, abs=1e-7)


def test_precision_recall_density_and_coverage_are_their_formulas() -> None:
    """Loops over 30 samples and 24 real points, k = 3."""
    x, y, k = normal(30, 2, 0, mean=0.4), normal(24, 2, 1), 3

    def radius(points: Tensor, i: int) -> float:
        return float((points - points[i]).norm(dim=1).sort().values[k])

    ry, rx = [radius(y, j) for j in range(24)], [radius(x, i) for i in range(30)]
    d = [[float((a - b).norm()) for b in y] for a in x]
    found = manifold(x, y, k)
    assert found.precision == pytest.approx(sum(any(d[i][j] <= ry[j] for j in range(24)) for i in range(30)) / 30)
    assert found.recall == pytest.approx(sum(any(d[i][j] <= rx[i] for i in range(30)) for j in range(24)) / 24)
    assert found.density == pytest.approx(sum(d[i][j] <= ry[j] for i in range(30) for j in range(24)) / (30 * k))
    assert found.coverage == pytest.approx(sum(any(d[i][j] <= ry[j] for i in range(30)) for j in range(24)) / 24)


def test_density_and_coverage_of_equal_laws_have_their_known_means() -> None:
    """N = M = 60, k = 3, 100 repeats, 4 standard errors.

    E density = 1: the ball of the k-th of N - 1 neighbours holds k/N of the law in the mean. E coverage =
    1 - prod_{i<k} (N - 1 - i) / (2N - 1 - i): whether a sample comes before the k-th real neighbour.
    """
    n, k = 60, 3
    found = [manifold(normal(n, 2, 2 * i), normal(n, 2, 2 * i + 1), k) for i in range(100)]
    coverage, density = torch.tensor([f.coverage for f in found]), torch.tensor([f.density for f in found])
    assert abs(float(density.mean()) - 1) < 4 * float(density.std()) / 10
    exact = 1 - math.prod((n - 1 - i) / (2 * n - 1 - i) for i in range(k))
    assert abs(float(coverage.mean()) - exact) < 4 * float(coverage.std()) / 10
    far = manifold(normal(n, 2, 0, mean=100.0), normal(n, 2, 1), k)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


def test_vendi_counts_different_samples() -> None:
    """Orthogonal rows count each, copies count once, and groups of unequal size by their entropy."""
    eye = torch.eye(8, dtype=torch.float64)
    assert vendi(eye) == pytest.approx(8.0)
    assert vendi(3 * eye[[0] * 5]) == pytest.approx(1.0)
    p = torch.tensor([0.75, 0.25]).double()
    assert vendi(eye[[0, 0, 0, 1]]) == pytest.approx(float(torch.exp(-(p * p.log()).sum())))
    x = normal(12, 3, 0)
    unit = x / x.norm(dim=1, keepdim=True)
    assert vendi(x) == pytest.approx(vendi_of_kernel(unit @ unit.T), rel=1e-9)  # 3 x 3 and 12 x 12 agree


def test_measure_runs_every_listed_measure_on_the_users_features() -> None:
    """Features that drop a coordinate make samples that differ there alike."""
    x = torch.cat([normal(40, 2, 0), normal(40, 1, 1)], dim=1)
    y = torch.cat([x[:, :2], normal(40, 1, 2, mean=9.0)], dim=1)
    seen = measure(x, y, features=lambda z: z[:, :2])
    assert set(seen) == set(ONE_SAMPLE) | set(TWO_SAMPLE)
    assert seen["frechet"] == pytest.approx(0, abs=1e-9) and seen["nearest"] == pytest.approx(0, abs=1e-7)
    assert seen["sliced_wasserstein"] == 0 and seen["precision"] == 1
    assert measure(x, y)["frechet"] > 70
    assert set(measure(x)) == set(ONE_SAMPLE)


@pytest.mark.parametrize("name", TWO_SAMPLE)
def test_two_sample_measures_refuse_what_they_cannot_compare(name: str) -> None:
    with pytest.raises(GirsanovError, match="equal size each: 3 and 2 numbers"):
        TWO_SAMPLE[name](normal(20, 3, 0), normal(20, 2, 0))
    with pytest.raises(GirsanovError, match="features that are not finite"):
        TWO_SAMPLE[name](normal(20, 3, 0) / 0, normal(20, 3, 0))


def test_bad_features_are_refused() -> None:
    with pytest.raises(GirsanovError, match=r"a feature function returns one row a sample, \[9, F\], not \[9\]"):
        measure(normal(9, 3, 0), features=lambda z: z[:, 0])
    with pytest.raises(GirsanovError, match="k = 5 nearest neighbours need more than 5 samples: there are 5 and 9"):
        manifold(normal(5, 2, 0), normal(9, 2, 0))
