r"""Samplers on the line: expectations of the end point by quadrature, with no sampling error, for any smooth reward.

A step is ``x_s ~ N(mean(x_t), std^2)``, so the backward equation is one Gauss-Hermite sum a point,

.. math:: u_t(x) = E[u_s(x_s) | x_t = x] = \sum_j w_j\, u_s(mean(x) + std\, z_j), \qquad u_{end} = r

with u tabulated on a line of points at each time of the grid, and read between them by cubic splines. It takes steps of
any size: a narrow kernel needs no finer table, since nothing but the smooth u is tabulated. Accuracy is that of the
splines, about 1e-8 with the default table on mixtures of unit scale.

Integrals against a law are trapezoid sums over the points of each component, which converge spectrally.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.models import ModelLike
from girsanov.problems.laws import Gaussian, Mixture
from girsanov.processes import Process
from girsanov.samplers.base import Sampler
from girsanov.types import Step

Score = Callable[[Tensor], Tensor]
"""``r(x [B, 1]) -> [B]``, smooth."""


@dataclass(frozen=True)
class Line:
    """A single-step sampler on a model of one dimension.

    Attributes:
        model: exact or tuned; its network takes float64.
        sampler: any single-step sampler.
        grid: the times.
        reach: half-width of the interval about 0 in which the data lies.
        points: size of the table at each time.
        order: number of Gauss-Hermite nodes.
    """

    model: ModelLike
    sampler: Sampler
    grid: Grid
    reach: float
    points: int = 601
    order: int = 24

    def __post_init__(self) -> None:
        if self.model.shape != (1,):
            raise GirsanovError(f"quadrature is for one dimension, the model has shape {list(self.model.shape)}")
        if not self.sampler.single_step:
            raise GirsanovError(
                f"{type(self.sampler).__name__} is a multistep solver, its steps are no maps of one state"
            )

    def nodes(self, t: Tensor) -> np.ndarray:
        """Points of the table at time t: all but 1e-15 of the noised data and of the prior."""
        c = self.model.process(t)
        half = float(c.alpha) * self.reach + 9.0 * float(c.sigma)
        return np.linspace(-half, half, self.points)

    @torch.no_grad()
    def step(self, step: Step) -> tuple[np.ndarray, np.ndarray, float]:
        """Points x of the step's start, the kernel's mean at them, and its std."""
        x = self.nodes(step.t)
        kernel, _ = self.sampler.kernel(self.model, torch.from_numpy(x).unsqueeze(1), step)
        return x, kernel.mean.squeeze(1).numpy(), float(kernel.std) if kernel.stochastic else 0.0

    def conditional(self, reward: Score) -> Score:
        """``E[r(x_end) | x_T = x]`` as a function of the start."""
        self.sampler.init(self.model, self.grid)
        z, w = hermite(self.order)
        u: Callable[[np.ndarray], np.ndarray] = as_numpy(reward)
        for step in reversed(list(self.grid)):
            x, mean, std = self.step(step)
            values = u(mean[:, None] + std * z) @ w if std > 0 else u(mean)
            u = CubicSpline(x, values)
        last = u
        return lambda start: torch.from_numpy(np.asarray(last(start.squeeze(1).numpy())))

    def expect(self, reward: Score) -> float:
        """``E r(x_end)`` from the process's prior."""
        return integrate(self.conditional(reward), Gaussian(0.0, self.model.process.prior_std**2))


def hermite(order: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of ``E f(z)``, z standard normal: [order] each."""
    z, w = np.polynomial.hermite_e.hermegauss(order)
    return z, w / w.sum()


def as_numpy(reward: Score) -> Callable[[np.ndarray], np.ndarray]:
    """The reward on arrays of any shape."""

    def score(x: np.ndarray) -> np.ndarray:
        flat = torch.from_numpy(np.ascontiguousarray(x).reshape(-1, 1))
        return reward(flat).detach().numpy().reshape(x.shape)

    return score


def integrate(f: Score, law: Mixture, points: int = 2001) -> float:
    """``E f(x)`` for x from a law on the line."""
    z = torch.linspace(-9, 9, points, dtype=torch.float64)
    density = torch.exp(-0.5 * z**2)
    density = density / density.sum()
    parts = [
        weight * (density @ f((mean + cov.sqrt() * z).reshape(-1, 1)))
        for weight, mean, cov in zip(law.weights, law.means[:, 0], law.covs[:, 0, 0], strict=True)
    ]
    return float(torch.stack(parts).sum())


def distribution(law: Mixture, x: Tensor) -> tuple[Tensor, Tensor]:
    """``F(x)`` and ``1 - F(x)`` of a law on the line, each accurate in its small tail; x [B, 1], results [B]."""
    z = (x - law.means[:, 0]) / law.covs[:, 0, 0].sqrt()
    return torch.special.ndtr(z) @ law.weights, torch.special.ndtr(-z) @ law.weights


def quantile(law: Mixture, source: Mixture, x: Tensor) -> Tensor:
    """The monotone map ``F_law^{-1}(F_source(x))`` by bisection, x and result [B, 1]."""
    low, high = distribution(source, x)
    side = low < 0.5
    width = float((law.means.abs() + 40 * law.covs[:, :, 0].sqrt()).max())
    a, b = torch.full_like(x, -width), torch.full_like(x, width)
    for _ in range(80):
        middle = 0.5 * (a + b)
        left, right = distribution(law, middle)
        below = torch.where(side, left < low, right > high).unsqueeze(1)
        a, b = torch.where(below, middle, a), torch.where(below, b, middle)
    return 0.5 * (a + b)


def geometric_grid(process: Process, n: int, last: float = 1e-4, top: float = 1e4) -> Grid:
    """n steps even in log rho from t = 1 (after one step to ``top``, if rho is infinite there) to ``last``, then 0.

    The grid of choice to approach continuous time: its error is even over the noise levels and of first order in 1/n.
    """
    rho = process.rho(1.0)
    head = [1.0]
    if not bool(torch.isfinite(rho)):
        rho = torch.tensor(top, dtype=torch.float64)
        head.append(float(process.time_of_rho(rho)))
    levels = torch.exp(torch.linspace(float(rho.log()), np.log(last), n, dtype=torch.float64))[1:]
    return Grid([*head, *process.time_of_rho(levels).tolist(), 0.0])
