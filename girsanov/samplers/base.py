r"""Samplers: every step is a Gaussian kernel ``x_s ~ N(mean, std^2 I)``.

A one-stage sampler is three numbers a step: with the network's x_0 and eps frozen over the step,

.. math:: mean = A x_0 + B \epsilon, \qquad std

and one affine map of the raw prediction (``predictions.affine_map``) does the step for every kind of prediction. It
declares its facts (order, whether it is stochastic, memoryless, single-step) and never opens ``no_grad``: gradients,
randomness, dtype and device belong to the caller.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.models import ModelLike, velocity
from girsanov.predictions import affine_map, combine
from girsanov.processes import Process, Schedule
from girsanov.samplers.plan import plan
from girsanov.types import Cond, Kernel, Stage, Step

Stages = Generator[Stage, Tensor, Tensor]
"""A solver's step as a dialogue: yields the points at which it wants the velocity, returns the new state."""


class Sampler(ABC):
    """One rule to step from t to s.

    Attributes:
        processes: the kinds of process it is defined for.
    """

    processes: ClassVar[tuple[type[Process], ...]] = (Process,)

    @property
    def order(self) -> int:
        """Order of convergence of the end law's mean and variance (the weak order, where noise is drawn)."""
        return 1

    @property
    def single_step(self) -> bool:
        """Whether every step that has a density depends on x_t alone; multistep solvers carry state."""
        return True

    @property
    def stochastic(self) -> bool:
        """Whether some step draws noise."""
        return False

    @property
    def memoryless(self) -> bool:
        """Whether its noise is that of the reverse SDE (eta = 1), the noise that forgets where sampling started."""
        return False

    def init(self, model: ModelLike, grid: Grid) -> Any:
        """The state before the first step; also checks that the sampler fits process and grid.

        None always means "no history": a multistep solver starts afresh from it, and single-step solvers carry it
        along.
        """
        if not isinstance(model.process, self.processes):
            names = " or ".join(p.__name__ for p in self.processes)
            raise GirsanovError(
                f"{type(self).__name__} is defined for {names}, not for {type(model.process).__name__}: use GDDIM, "
                "which takes any process and any eta"
            )
        return None

    @abstractmethod
    def kernel(
        self, model: ModelLike, x: Tensor, step: Step, cond: Cond | None = None, state: Any = None
    ) -> tuple[Kernel, Any]:
        """The law of x_s given x [B, *D], and the state for the next step."""

    def stages(self, model: ModelLike, x: Tensor, step: Step) -> Stages:
        """The step as a dialogue in velocities; of the model only its process and prediction kind are read.

        Only deterministic single-step samplers have one. ``kernel`` and whoever runs the step backwards hold the same
        dialogue, so they agree on the stages (a solver may leave one out where the model fixes no finite velocity).
        """
        raise GirsanovError(
            f"{type(self).__name__} cannot be run backwards stage by stage: use a deterministic single-step solver "
            "(Euler, Heun, GDDIM(eta=0))"
        )


class AffineSampler(Sampler):
    """A sampler of one network pass a step: ``mean = A x_0 + B eps``."""

    @abstractmethod
    def coefficients(self, process: Process, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """``(A, B, std)``, float64 of the shape of the step's times, finite for every step of a grid."""

    def kernel(
        self, model: ModelLike, x: Tensor, step: Step, cond: Cond | None = None, state: Any = None
    ) -> tuple[Kernel, Any]:
        """The Gaussian step; one network pass."""
        do = plan(self, model.process, model.prediction, step)
        p = model(x, step.t, cond)
        mean, stages = combine(x, p, do.c_x, do.c_p), (Stage(x, step.t, do.length),)
        return Kernel(mean, do.std, do.noisy, do.gain, stages, (x, p, do.schedule, model.prediction)), state

    def stages(self, model: ModelLike, x: Tensor, step: Step) -> Stages:
        """One stage; the running cost is weighted with the step's length."""
        if self.stochastic:
            super().stages(model, x, step)
        a, b, _ = self.coefficients(model.process, step)
        v = yield Stage(x, step.t, step.h.abs())
        return combine(x, v, *affine_map(model.process(step.t), "velocity", a, b))


@dataclass(frozen=True)
class EtaSampler(AffineSampler):
    """A one-stage sampler whose ``eta`` scales the standard deviation of the reverse SDE's noise."""

    eta: float = 1.0

    def __post_init__(self) -> None:
        if not self.eta >= 0:
            raise GirsanovError(f"eta scales a standard deviation and must be at least 0, not {self.eta}")

    @property
    def stochastic(self) -> bool:
        """eta > 0."""
        return self.eta > 0

    @property
    def memoryless(self) -> bool:
        """eta = 1."""
        return self.eta == 1


class StagedSampler(Sampler):
    """A deterministic solver of several velocity stages a step; ``stages`` defines it."""

    def kernel(
        self, model: ModelLike, x: Tensor, step: Step, cond: Cond | None = None, state: Any = None
    ) -> tuple[Kernel, Any]:
        """The deterministic step; one network pass a stage."""
        dialogue = self.stages(model, x, step)
        points: list[Stage] = []
        stage = next(dialogue)
        while True:
            points.append(stage)
            try:
                stage = dialogue.send(velocity(model, stage.x, stage.t, cond))
            except StopIteration as end:
                return Kernel(end.value, torch.zeros((), dtype=torch.float64), False, stages=tuple(points)), state

    @abstractmethod
    def stages(self, model: ModelLike, x: Tensor, step: Step) -> Stages:
        """The dialogue that defines the solver."""


def rho_ratio(now: Schedule, after: Schedule) -> Tensor:
    """``rho_s / rho_t = sigma_s alpha_t / (alpha_s sigma_t)``, finite also where alpha_t = 0 or sigma_s = 0."""
    return after.sigma * now.alpha / (after.alpha * now.sigma)
