r"""One dimension, any data law: end laws, path-KL optima and their costs by quadrature instead of closed forms.

A law on the line is a set of weighted nodes. A noisy step spreads every node into a Gaussian and reads the sum off on a
uniform grid; the trapezoid rule on smooth decaying densities converges faster than any power of the spacing, so a
spacing below the step's std leaves rounding. A step without noise moves the nodes. For a sampler without any noise this
is quantile integration, ``E r = int r(T(z)) dN(z)`` with T the (monotone) map of the flow.

The path-KL optimum needs no Gaussian data either: with ``U(m) = E V(m + std z)`` (V after the step, Gauss-Hermite),

.. math:: V(x) = \max_m U(m) - \beta (m - \mu(x))^2 / (2 std^2)

is found node by node, on the grid first and by Newton's method on the splines of U after that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import CubicSpline

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.models import Model
from girsanov.problems.rewards import check_beta
from girsanov.samplers.base import Sampler
from girsanov.types import Cond

Function = Callable[[np.ndarray], np.ndarray]
"""A real function on the line, [n] -> [n]."""


@dataclass(frozen=True)
class LineKernel:
    """One step ``x_s ~ N(mean(x_t), std^2)`` on the line."""

    mean: Function
    std: float


@dataclass(frozen=True)
class Nodes:
    """A law on the line as weighted points: ``E f = sum w f(x)``; both [n], the weights sum to 1 up to quadrature."""

    x: np.ndarray
    w: np.ndarray

    def expect(self, f: Function) -> float:
        """``E f``."""
        return float(self.w @ f(self.x))

    @property
    def mean(self) -> float:
        """First moment."""
        return float(self.w @ self.x)

    @property
    def variance(self) -> float:
        """Second central moment."""
        return float(self.w @ (self.x - self.mean) ** 2)

    def mass(self, low: float = -np.inf, high: float = np.inf) -> float:
        """Probability of ``low < x <= high``, interpolating the distribution function between the nodes."""
        order = np.argsort(self.x)
        cumulative = (
            np.cumsum(self.w[order]) - 0.5 * self.w[order]
        )  # mid-point rule: a node's mass is split at the node
        inside = [
            0.0 if v == -np.inf else 1.0 if v == np.inf else float(np.interp(v, self.x[order], cumulative))
            for v in (low, high)
        ]
        return inside[1] - inside[0]


def uniform(low: float, high: float, n: int) -> np.ndarray:
    """n equally spaced points, the grid that densities are kept on."""
    return np.linspace(low, high, n)


def line_kernels(model: Model, sampler: Sampler, grid: Grid, cond: Cond | None = None) -> list[LineKernel]:
    """The steps of a single-step sampler on a one-dimensional model.

    Args:
        model: data shape of one element, float64.
        sampler: any single-step sampler.
        grid: the times.
        cond: the condition, one sample.

    Raises:
        GirsanovError: multistep sampler, or a model of more than one dimension.
    """
    if not sampler.single_step or torch.Size(model.shape).numel() != 1:
        raise GirsanovError("numerics on the line take a single-step sampler and a model of one dimension")
    kernels = []
    for step in grid:

        def mean(x: np.ndarray, step: object = step) -> np.ndarray:
            points = torch.from_numpy(x).reshape(-1, *model.shape)
            rows = None if cond is None else cond.take(torch.zeros(len(x), dtype=torch.int64))
            with torch.no_grad():
                return sampler.kernel(model, points, step, rows, sampler.init(model, grid))[0].mean.flatten().numpy()  # type: ignore[arg-type]

        probe = sampler.kernel(
            model, torch.zeros(1, *model.shape, dtype=torch.float64), step, cond, sampler.init(model, grid)
        )[0]
        kernels.append(LineKernel(mean, float(probe.std) if probe.stochastic else 0.0))
    return kernels


def start_nodes(line: np.ndarray, std: float = 1.0) -> Nodes:
    """The prior N(0, std^2) on the grid's points."""
    w = np.exp(-0.5 * (line / std) ** 2)
    return Nodes(line, w / w.sum())


def _spread(nodes: Nodes, means: np.ndarray, std: float, line: np.ndarray) -> Nodes:
    """The law of ``mean + std z`` on the grid's points."""
    spacing = float(line[1] - line[0])
    if std < 0.7 * spacing:
        raise GirsanovError(
            f"a step's std {std:.3g} is below the grid's spacing {spacing:.3g}: use more points on the line"
        )
    w, reach = np.zeros(len(line)), int(np.ceil(9 * std / spacing))  # beyond 9 std there is nothing left to rounding
    live = np.flatnonzero(nodes.w > 1e-25)
    for part in np.array_split(live, max(1, len(live) * (2 * reach + 1) // 1_000_000)):
        target = np.rint((means[part] - line[0]) / spacing).astype(int)[:, None] + np.arange(-reach, reach + 1)
        gap = (line[0] + spacing * target - means[part, None]) / std
        density = nodes.w[part, None] * np.exp(-0.5 * gap**2)
        inside = (target >= 0) & (target < len(line))
        w += np.bincount(target[inside], density[inside], len(line))
    w *= spacing / (std * np.sqrt(2 * np.pi))
    if abs(w.sum() - nodes.w.sum()) > 1e-6:
        raise GirsanovError("probability leaves the line or the spacing is too wide: use a longer line, or more points")
    return Nodes(line, w)


def transport(kernels: Sequence[LineKernel], start: Nodes, line: np.ndarray) -> Nodes:
    """The end law of a chain. Raises GirsanovError if the line is too short or too coarse."""
    for kernel in kernels:
        means = kernel.mean(start.x)
        start = _spread(start, means, kernel.std, line) if kernel.std > 0 else Nodes(means, start.w)
    return start


def line_path_kl(tuned: Sequence[LineKernel], reference: Sequence[LineKernel], start: Nodes, line: np.ndarray) -> float:
    """``sum E (mean - mean_ref)^2 / (2 std^2)`` over the noisy steps of the tuned chain."""
    total = 0.0
    for new, old in zip(tuned, reference, strict=True):
        if new.std > 0:
            total += start.expect(lambda x, a=new, b=old: (a.mean(x) - b.mean(x)) ** 2) / (2 * new.std**2)  # type: ignore[misc]
        start = transport([new], start, line)
    return total


def line_path_kl_limit(
    kernels: Sequence[LineKernel], reward: Function, beta: float, line: np.ndarray
) -> tuple[list[LineKernel], CubicSpline]:
    """The chain that maximises ``E r - beta KL(path)`` over its means, and its value at the start.

    By the envelope theorem it is also the fixed point of adjoint matching (lean adjoint, costate after the step), for
    any data law.
    """
    check_beta(beta)
    z, weight = np.polynomial.hermite_e.hermegauss(40)
    weight = weight / weight.sum()
    value: Function = reward
    tuned: list[LineKernel] = []
    for kernel in reversed(kernels):
        mu = kernel.mean(line)
        if kernel.std == 0:
            tuned.insert(0, kernel)
            value = CubicSpline(line, value(mu))
            continue
        U = CubicSpline(line, value((line[:, None] + kernel.std * z).ravel()).reshape(len(line), -1) @ weight)
        best, top = _maximise(U, mu, beta / kernel.std**2, line)
        tuned.insert(0, LineKernel(CubicSpline(line, best), kernel.std))
        value = CubicSpline(line, top)
    return tuned, CubicSpline(line, value(line))


def _maximise(U: CubicSpline, mu: np.ndarray, stiffness: float, line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``argmax_m U(m) - stiffness (m - mu)^2 / 2`` and the maximum, for every mu."""
    grid = U(line)
    start = [line[(grid - 0.5 * stiffness * (line - part[:, None]) ** 2).argmax(1)] for part in np.array_split(mu, 8)]
    m = np.concatenate(start)
    # A maximum beyond the line's ends is found by Newton alone, from the point itself.
    m = np.where((m <= line[0]) | (m >= line[-1]), mu, m)
    for _ in range(8):
        curvature = np.minimum(U(m, 2) - stiffness, -0.05 * stiffness)
        m = m - (U(m, 1) - stiffness * (m - mu)) / curvature
    return m, U(m) - 0.5 * stiffness * (m - mu) ** 2
