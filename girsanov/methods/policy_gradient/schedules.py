r"""Samplers that change over training: the moving windows of MixGRPO.

A schedule is asked for the sampler of each iteration, and its answer is a function of the iteration alone, so a resumed
run needs no position. Windows move over the positions ``0 .. P - 1`` of a grid of T steps, ``P = T - leave``, from
noisy to clean, and roll back to the start; near the end a window is as short as what is left.

The published code has ``leave = 2`` and one more position, at which its window is empty and nothing is trained; that
one is left out here.

Reference: Li et al. 2025, arXiv:2507.21802, section 3 and its code (sliding, random, decaying and exponential stays).
"""

import bisect
import dataclasses
import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.base import Turn
from girsanov.noise import generator
from girsanov.samplers.base import Sampler
from girsanov.samplers.mixed import Mixed

WINDOW_STREAM = 7102  # keeps the choice of windows apart from other noise


class SamplerSchedule(ABC):
    """A change of the sampler over training."""

    @abstractmethod
    def at(self, sampler: Sampler, grid: Grid, turn: Turn) -> Sampler:
        """What becomes of the sampler in an iteration, the same on every process."""


@dataclass(frozen=True)
class Unchanged(SamplerSchedule):
    """The same sampler throughout."""

    def at(self, sampler: Sampler, grid: Grid, turn: Turn) -> Sampler:
        """The sampler itself."""
        return sampler


@dataclass(frozen=True)
class Window(SamplerSchedule):
    """Moves the window of a mixed sampler.

    Attributes:
        every: iterations between two moves (at the noisy end, where they vary).
        leave: steps at the data end that no window reaches.
    """

    every: int = 25
    leave: int = 2

    def __post_init__(self) -> None:
        if self.every < 1 or self.leave < 0:
            raise GirsanovError(f"a window moves every 1 or more iterations and leaves 0 or more steps, not {self}")

    @abstractmethod
    def start(self, positions: int, turn: Turn) -> int:
        """The first step of the window, 0 .. positions - 1."""

    def at(self, sampler: Sampler, grid: Grid, turn: Turn) -> Sampler:
        """The mixed sampler with its window where it belongs in this iteration."""
        if not isinstance(sampler, Mixed):
            raise GirsanovError(
                f"a window moves over a mixed sampler and {type(sampler).__name__} is not one: use "
                "Mixed(FlowSDE(0.7), Euler(), length=4)"
            )
        positions = max(1, len(grid) - self.leave)
        first = self.start(positions, turn)
        return dataclasses.replace(sampler, start=first, length=min(sampler.length, positions - first))


@dataclass(frozen=True)
class SlidingWindow(Window):
    """Moves by ``stride`` every so many iterations."""

    stride: int = 1

    def start(self, positions: int, turn: Turn) -> int:
        """``floor(i / every) stride mod P``."""
        return turn.index // self.every * self.stride % positions


@dataclass(frozen=True)
class RandomWindow(Window):
    """A random position among the first ``share`` of them (Flow-GRPO-Fast: half)."""

    share: float = 1.0

    def start(self, positions: int, turn: Turn) -> int:
        """Uniform, drawn anew every so many iterations."""
        key = (turn.seed, WINDOW_STREAM, turn.index // self.every)
        return int(torch.randint(max(1, math.ceil(self.share * positions)), (1,), generator=generator(key)))


class Stay(Window):
    """A window whose stay depends on its position."""

    @abstractmethod
    def stay(self, position: int, positions: int) -> int:
        """Iterations at a position, at least 1."""

    def start(self, positions: int, turn: Turn) -> int:
        """The position whose turn it is."""
        ends = list(itertools.accumulate(self.stay(k, positions) for k in range(positions)))
        return bisect.bisect_right(ends, turn.index % ends[-1])


@dataclass(frozen=True)
class DecayingWindow(Stay):
    """Stays ``every`` iterations at the first position, falling linearly to 1 at the last."""

    def stay(self, position: int, positions: int) -> int:
        """``every - (every - 1) l / (P - 1)``, rounded."""
        return round(self.every - (self.every - 1) * position / max(1, positions - 1))


@dataclass(frozen=True)
class ExponentialWindow(Stay):
    """Stays ``every exp(-rate max(0, l - after))`` iterations at position l."""

    rate: float = 0.1
    after: int = 0

    def stay(self, position: int, positions: int) -> int:
        """``every exp(-rate relu(l - after))``, rounded, at least 1."""
        return max(1, round(self.every * math.exp(-self.rate * max(0, position - self.after))))
