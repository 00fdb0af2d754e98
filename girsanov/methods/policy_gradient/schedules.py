"""Samplers that change over training.

A method that takes a schedule asks it for the sampler of each iteration; the answer is a function of the iteration
alone, so a resumed run needs no position.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from girsanov.methods.base import Turn
from girsanov.samplers.base import Sampler


class SamplerSchedule(ABC):
    """A change of the sampler over training."""

    @abstractmethod
    def at(self, sampler: Sampler, turn: Turn) -> Sampler:
        """What becomes of the sampler in an iteration, the same on every process."""


@dataclass(frozen=True)
class Unchanged(SamplerSchedule):
    """The same sampler throughout."""

    def at(self, sampler: Sampler, turn: Turn) -> Sampler:
        """The sampler itself."""
        return sampler
