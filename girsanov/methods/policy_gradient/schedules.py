"""Samplers that change over training.

A schedule is asked for the sampler of each iteration, and its answer is a function of the iteration alone, so a resumed
run needs no position. Windows that move are in ``windows.py``, an eta that changes in ``annealing.py``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from girsanov.grids import Grid
from girsanov.methods.base import Turn
from girsanov.samplers.base import Sampler


class SamplerSchedule(ABC):
    """A change of the sampler over training."""

    @abstractmethod
    def at(self, sampler: Sampler, grid: Grid, turn: Turn) -> Sampler:
        """What becomes of the sampler in an iteration, the same on every process."""

    def times(self, sampler: Sampler, grid: Grid) -> Grid:
        """The times that this iteration's sampler runs on: the grid itself."""
        return grid


@dataclass(frozen=True)
class Unchanged(SamplerSchedule):
    """The same sampler throughout."""

    def at(self, sampler: Sampler, grid: Grid, turn: Turn) -> Sampler:
        """The sampler itself."""
        return sampler
