r"""Stochastic inside a window of steps, deterministic outside: the sampler of MixGRPO.

Only the steps of the window ``start <= i < start + length`` draw noise and have a density; the others can take any
solver, also a multistep one, whose history is dropped by the window: it starts afresh after it.

Reference: Li et al. 2025, arXiv:2507.21802.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.models import ModelLike
from girsanov.samplers.base import Sampler
from girsanov.samplers.dpm_solver import DPMSolverPP2M
from girsanov.samplers.gddim import GDDIM
from girsanov.types import Cond, Kernel, Step


@dataclass(frozen=True)
class Mixed(Sampler):
    """One sampler inside a window of steps, another outside.

    Attributes:
        inside: stochastic sampler of the window.
        outside: deterministic sampler of the other steps.
        start: first step of the window.
        length: number of steps of the window.
    """

    inside: Sampler = GDDIM(1.0)
    outside: Sampler = DPMSolverPP2M()
    start: int = 0
    length: int = 4

    def __post_init__(self) -> None:
        if not self.inside.stochastic or self.outside.stochastic:
            raise GirsanovError(
                "a mixed sampler is stochastic inside its window and deterministic outside, not "
                f"{type(self.inside).__name__} and {type(self.outside).__name__}: for example "
                "Mixed(GDDIM(1.0), DPMSolverPP2M(), start=0, length=4)"
            )
        if self.start < 0 or self.length < 1:
            raise GirsanovError(
                f"a window of {self.length} steps from step {self.start} is empty or starts before step 0"
            )

    @property
    def order(self) -> int:
        """The lower of the two orders."""
        return min(self.inside.order, self.outside.order)

    @property
    def single_step(self) -> bool:
        """That of the window: the steps outside it have no density and are replayed from their stored state."""
        return self.inside.single_step

    @property
    def stochastic(self) -> bool:
        """Always, in the window."""
        return True

    def init(self, model: ModelLike, grid: Grid) -> Any:
        """The outer solver's state; checks both samplers and that the window lies on the grid."""
        if self.start + self.length > len(grid):
            raise GirsanovError(
                f"the window of steps {self.start} .. {self.start + self.length - 1} leaves the grid's "
                f"0 .. {len(grid) - 1}: move it, shorten it, or take more steps"
            )
        self.inside.init(model, grid)
        return self.outside.init(model, grid)

    def kernel(
        self, model: ModelLike, x: Tensor, step: Step, cond: Cond | None = None, state: Any = None
    ) -> tuple[Kernel, Any]:
        """The step of the sampler in charge; a step of the window leaves no history."""
        if self.start <= step.i < self.start + self.length:
            return self.inside.kernel(model, x, step, cond)[0], None
        return self.outside.kernel(model, x, step, cond, state)
