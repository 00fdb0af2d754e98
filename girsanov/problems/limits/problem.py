"""The problem that limits are asked of: Gaussian data, a quadratic reward, and how the network is read and sampled."""

import dataclasses
from dataclasses import dataclass

from torch import Tensor

from girsanov.grids import Grid
from girsanov.models import Model
from girsanov.predictions import Prediction
from girsanov.problems.laws import Gaussian
from girsanov.problems.moments import affine_kernels, prior_moments
from girsanov.problems.recursions import Kernels
from girsanov.problems.rewards import QuadraticReward
from girsanov.processes import Process, RectifiedFlow
from girsanov.samplers.base import Sampler
from girsanov.samplers.euler import Euler


@dataclass(frozen=True)
class GaussianProblem:
    """Gaussian data, a quadratic reward, and how the network is read.

    Attributes:
        law: the data.
        reward: the pay-off.
        process: the noising process.
        prediction: what the network predicts.
        sampler, grid: how the methods that train no chain are sampled.
        bt_temperature: of the annotator who labels preference pairs.
        group: samples a group, for advantages that depend on it; None is a large one.
    """

    law: Gaussian
    reward: QuadraticReward
    process: Process = RectifiedFlow()
    prediction: Prediction = "velocity"
    sampler: Sampler = Euler()
    grid: Grid = dataclasses.field(default_factory=lambda: Grid.uniform(20))
    bt_temperature: float = 1.0
    group: int | None = None

    @property
    def model(self) -> Model:
        """The exact model before tuning."""
        return self.law.model(self.process, self.prediction)

    @property
    def linear(self) -> bool:
        """Whether the reward is linear."""
        return not bool(self.reward.A.any())

    def on(self, grid: Grid) -> "GaussianProblem":
        """The same problem on another grid."""
        return dataclasses.replace(self, grid=grid)

    def chain(self, sampler: Sampler, grid: Grid) -> tuple[Kernels, tuple[Tensor, Tensor]]:
        """The untuned chain and the moments of its start."""
        return affine_kernels(self.model, sampler, grid), prior_moments(self.model)
