"""The choice of loss steps that adjoint matching was published with."""

from dataclasses import dataclass

import torch

from girsanov.errors import GirsanovError
from girsanov.methods.base import Turn
from girsanov.methods.policy_gradient.steps import STEP_STREAM, Steps
from girsanov.noise import generator


@dataclass(frozen=True)
class Subset(Steps):
    """The last ``late`` steps, and ``early`` random ones of the others, drawn anew every iteration.

    The default is that of arXiv:2409.08861, appendix G, for 40 steps: 10 of the first 30 and the last 10. A grid with
    fewer steps gives what it has.
    """

    early: int = 10
    late: int = 10

    def __post_init__(self) -> None:
        if self.early < 0 or self.late < 0 or self.early + self.late == 0:
            raise GirsanovError(
                f"a subset of {self.early} early and {self.late} late steps is empty: give at least one"
            )

    def __call__(self, k: int, turn: Turn) -> list[int]:
        """Keyed by (seed, iteration)."""
        cut = max(0, k - self.late)
        order = torch.randperm(cut, generator=generator((turn.seed, STEP_STREAM, turn.index)))[: self.early]
        return [*sorted(order.tolist()), *range(cut, k)]
