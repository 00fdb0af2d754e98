r"""Samplers on affine networks: every step is an affine map, so means and covariances are exact on any grid.

On Gaussian data the network is affine in the state, a sampler's kernel is ``N(F x + c, std^2 I)``, and so is the whole
chain in its start and its noise. The maps are read off by probing: one batch holds the origin and the unit vectors, for
the end map also one unit vector for every coordinate of every noise draw. That needs no knowledge of the sampler, so it
holds for multistep and multi-stage solvers and for tuned networks, as long as they are affine (which is checked on a
further, random point).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.models import ModelLike
from girsanov.problems.laws import Gaussian
from girsanov.rollout import rollout
from girsanov.samplers.base import Sampler
from girsanov.types import Cond


@dataclass(frozen=True)
class AffineKernel:
    """One step ``x_s ~ N(F x_t + c, std^2 I)`` in d flat dimensions.

    Attributes:
        F: [d, d].
        c: [d].
        std: standard deviation of the noise, 0 on a deterministic step.
        gain: ``d mean / d velocity`` of a one-stage sampler (a number), or None.
    """

    F: Tensor
    c: Tensor
    std: float
    gain: float | None

    def push(self, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
        """Moments after the step."""
        return self.F @ mean + self.c, self.F @ cov @ self.F.mT + self.std**2 * torch.eye(
            len(mean), dtype=torch.float64
        )


@dataclass(frozen=True)
class EndMap:
    """The whole chain, ``x_end = M x_start + c + sum_j N_j z_j``: M [d, d], c [d], noise maps N [J, d, d]."""

    M: Tensor
    c: Tensor
    noise: Tensor

    def law(self, mean: Tensor, cov: Tensor) -> Gaussian:
        """End law for a start with the given moments."""
        end = self.M @ cov @ self.M.mT + torch.einsum("jik,jlk->il", self.noise, self.noise)
        return Gaussian(self.M @ mean + self.c, 0.5 * (end + end.mT))


def prior_moments(model: ModelLike) -> tuple[Tensor, Tensor]:
    """Mean [d] and covariance [d, d] of ``process.prior(z)``."""
    d = torch.Size(model.shape).numel()
    return torch.zeros(d, dtype=torch.float64), model.process.prior_std**2 * torch.eye(d, dtype=torch.float64)


def repeat(cond: Cond | None, n: int) -> Cond | None:
    """The condition of one sample, for n samples."""
    if cond is None:
        return None
    if len(cond) != 1:
        raise GirsanovError("moments are those of one condition: give a Cond with a single sample")
    return cond.take(torch.zeros(n, dtype=torch.int64))


def probes(d: int) -> Tensor:
    """The origin, the d unit vectors, and one random point that shows whether the map is affine: [d + 2, d]."""
    extra = torch.randn(1, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.zeros(1, d, dtype=torch.float64), torch.eye(d, dtype=torch.float64), extra])


def read_affine(points: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """``(F, c)`` of ``image = F point + c``. Raises if the last row does not obey it."""
    d = points.shape[1]
    c = images[0]
    F = (images[1 : d + 1] - c).mT
    if not torch.allclose(images[d + 1], F @ points[d + 1] + c, rtol=1e-6, atol=1e-8):
        raise GirsanovError(
            "this network is not affine in the state: exact moments need Gaussian data and an affine correction"
        )
    return F, c


@torch.no_grad()
def affine_kernels(model: ModelLike, sampler: Sampler, grid: Grid, cond: Cond | None = None) -> list[AffineKernel]:
    """The steps of a single-step sampler on an affine model, noisiest first.

    Args:
        model: exact or tuned; its network takes float64.
        sampler: any single-step sampler.
        grid: the times.
        cond: the condition, one sample.

    Raises:
        GirsanovError: multistep sampler, network that is not affine.
    """
    if not sampler.single_step:
        raise GirsanovError(
            f"{type(sampler).__name__} is a multistep solver, its steps are no maps of one state: use end_law"
        )
    points = probes(torch.Size(model.shape).numel())
    batch, state, kernels = repeat(cond, len(points)), sampler.init(model, grid), []
    for step in grid:
        kernel, state = sampler.kernel(model, points.view(-1, *model.shape), step, batch, state)
        F, c = read_affine(points, kernel.mean.flatten(1))
        gain = None if kernel.gain is None else float(kernel.gain)
        kernels.append(AffineKernel(F, c, float(kernel.std) if kernel.stochastic else 0.0, gain))
    return kernels


def chain_law(kernels: list[AffineKernel], mean: Tensor, cov: Tensor) -> Gaussian:
    """End law of a chain of affine kernels from a start with the given moments."""
    for kernel in kernels:
        mean, cov = kernel.push(mean, cov)
    return Gaussian(mean, 0.5 * (cov + cov.mT))


@torch.no_grad()
def end_map(model: ModelLike, sampler: Sampler, grid: Grid, cond: Cond | None = None) -> EndMap:
    """The end state as an affine function of start and noise, for any sampler (multistep, mixed, multi-stage too).

    Raises GirsanovError if the network is not affine.
    """
    d = torch.Size(model.shape).numel()
    starts = probes(d)
    x = torch.cat([starts, torch.zeros(len(grid) * d, d, dtype=torch.float64)])
    draws = 0

    def unit(like: Tensor) -> Tensor:
        nonlocal draws
        z = torch.zeros(len(x), d, dtype=torch.float64)
        rows = len(starts) + draws * d + torch.arange(d)
        z[rows, torch.arange(d)] = 1.0
        draws += 1
        return z.view_as(like)

    end = rollout(model, sampler, grid, x.view(-1, *model.shape), repeat(cond, len(x)), noise=unit, keep=()).x0.flatten(
        1
    )
    M, c = read_affine(starts, end[: len(starts)])
    noise = (end[len(starts) :] - c).view(len(grid), d, d)[:draws].mT
    return EndMap(M, c, noise)


def end_law(model: ModelLike, sampler: Sampler, grid: Grid, cond: Cond | None = None) -> Gaussian:
    """Exact law of a sampler's end points, started from the process's prior.

    Raises GirsanovError if the network is not affine.
    """
    return end_map(model, sampler, grid, cond).law(*prior_moments(model))
