"""Which steps of a trajectory carry a loss."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from girsanov.errors import GirsanovError
from girsanov.methods.base import Turn
from girsanov.noise import generator

STEPS = 2  # noise stream of the choice of steps; the same on all processes


class Steps(ABC):
    """A choice of steps, made once an iteration and alike on every process."""

    @abstractmethod
    def choose(self, n: int, turn: Turn) -> tuple[int, ...]:
        """The chosen indices among 0 .. n-1, rising."""


@dataclass(frozen=True)
class AllSteps(Steps):
    """Every step."""

    def choose(self, n: int, turn: Turn) -> tuple[int, ...]:
        """0 .. n-1."""
        return tuple(range(n))


@dataclass(frozen=True)
class Subset(Steps):
    """The last ``late`` steps, and ``early`` random ones of the others, drawn anew every iteration.

    The default is that of adjoint matching for 40 steps (arXiv:2409.08861, appendix G): 10 of the first 30 and the last
    10. A grid with fewer steps gives what it has.
    """

    early: int = 10
    late: int = 10

    def __post_init__(self) -> None:
        if self.early < 0 or self.late < 0 or self.early + self.late == 0:
            raise GirsanovError(
                f"a subset of {self.early} early and {self.late} late steps is empty: give at least one"
            )

    def choose(self, n: int, turn: Turn) -> tuple[int, ...]:
        """Keyed by (seed, iteration)."""
        cut = max(0, n - self.late)
        order = torch.randperm(cut, generator=generator((turn.seed, turn.index, STEPS)))[: self.early]
        return (*sorted(order.tolist()), *range(cut, n))
