"""What the law tests of processes and samplers run over: every listed member, and values of its dial."""

import math

import torch
from torch import Tensor

from girsanov.annealing import Constant, Staircase
from girsanov.grids import Grid
from girsanov.models import Model
from girsanov.predictions import ROWS, Prediction
from girsanov.problems import Gaussian, Mixture
from girsanov.processes import PROCESSES, Process, VPTable
from girsanov.samplers import (
    CPS,
    GDDIM,
    PRECISE,
    SAMPLERS,
    DanceSDE,
    DPMSolverPP2M,
    Euler,
    EulerMaruyama,
    FlowSDE,
    GDDIMSchedule,
    Heun,
    MemorylessFlow,
    Mixed,
    Sampler,
)
from girsanov.types import Step

F64 = torch.float64
KINDS: list[Prediction] = list(ROWS)


def make_process(name: str) -> Process:
    """A listed process with its defaults; the table is that of Stable Diffusion."""
    return VPTable.stable_diffusion() if name == "vp-table" else PROCESSES[name]()


EVERY_PROCESS = {name: make_process(name) for name in PROCESSES}
SMOOTH = {name: p for name, p in EVERY_PROCESS.items() if name != "vp-table"}  # no kinks between table points

DIALS: dict[str, list[Sampler]] = {
    "euler": [Euler()],
    "heun": [Heun()],
    "dpm-solver++2m": [DPMSolverPP2M()],
    "gddim": [GDDIM(e) for e in (0.0, 0.5, 1.0, 2.0)],
    "gddim-schedule": [GDDIMSchedule(), GDDIMSchedule(Constant(1.0)), GDDIMSchedule(Staircase((2.0, 0.7)))],
    "euler-maruyama": [EulerMaruyama(e) for e in (0.0, 0.5, 1.0, 2.0)],
    "flow-sde": [FlowSDE(), FlowSDE(math.sqrt(2))],
    "dance-sde": [DanceSDE(), DanceSDE(1.0)],
    "cps": [CPS()],
    "precise": [PRECISE(), PRECISE(math.sqrt(2))],
    "memoryless-flow": [MemorylessFlow()],
    "mixed": [Mixed(), Mixed(EulerMaruyama(1.0), Euler(), start=2, length=3), Mixed(GDDIM(0.5), Heun(), 1, 2)],
}
"""Every listed sampler at several values of its dial. ``test_samplers`` checks that no listed sampler is missing."""

EVERY_SAMPLER = {f"{name}-{i}": s for name in SAMPLERS for i, s in enumerate(DIALS.get(name, []))}
PRESERVING = {name: s for name, s in EVERY_SAMPLER.items() if s.stochastic and not isinstance(s, CPS | Mixed)}
"""Stochastic samplers whose marginals are those of the process (CPS says that its are not)."""

SOLID = Gaussian([0.3, -0.4, 0.9], [[1.0, 0.3, 0.1], [0.3, 0.8, -0.2], [0.1, -0.2, 0.5]])
PLANE = Mixture([0.6, 0.4], [[-1.0, 0.5], [1.2, -0.3]], [[[0.3, 0.1], [0.1, 0.4]], [[0.5, -0.2], [-0.2, 0.2]]])


def fits(sampler: Sampler, process: Process) -> bool:
    """Whether the sampler is defined for the process."""
    return isinstance(process, sampler.processes)


def pairs(samplers: dict[str, Sampler], processes: dict[str, Process]) -> list[tuple[str, str]]:
    """Names of every sampler with every process it is defined for."""
    return [(s, p) for s in samplers for p in processes if fits(samplers[s], processes[p])]


def step(t: float | Tensor, s: float | Tensor, i: int = 0, n: int = 10) -> Step:
    """A step between two times, float64."""
    return Step(torch.as_tensor(t, dtype=F64), torch.as_tensor(s, dtype=F64), i, n)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float64 numbers."""
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def known(x0: Tensor, eps: Tensor, process: Process, prediction: Prediction) -> Model:
    """A model that always predicts the given x_0 and eps, whatever the state."""

    def net(x: Tensor, t: Tensor, cond: object) -> Tensor:
        a, b = (v.reshape(-1, *[1] * (x.ndim - 1)) for v in ROWS[prediction](process(t.double())))
        return (a * x0 + b * eps).to(x)

    return Model(net, process, prediction, tuple(x0.shape[1:]))


def line_moments(
    law: Gaussian, process: Process, sampler: Sampler, grid: Grid, start: tuple[float, float]
) -> tuple[float, float]:
    """Mean and variance of the end of a single-step sampler on one-dimensional Gaussian data, exact.

    All steps are asked at once, one sample a step with its own times [B]: the origin and 1 show each step's affine map.
    """
    n = len(grid)
    every = Step(grid.ts[:-1].repeat(2), grid.ts[1:].repeat(2), 0, n)
    points = torch.cat([torch.zeros(n, 1, dtype=F64), torch.ones(n, 1, dtype=F64)])
    kernel = sampler.kernel(law.model(process), points, every)[0]
    offset = kernel.mean[:n, 0]
    slope, std = kernel.mean[n:, 0] - offset, kernel.std.expand(2 * n)[:n]
    mean, variance = start
    for a, b, c in zip(slope.tolist(), offset.tolist(), std.tolist(), strict=True):
        mean, variance = a * mean + b, a * a * variance + c * c
    return mean, variance
