r"""The moving windows of MixGRPO.

Windows start at ``0, stride, 2 stride, ... < P`` on a grid of T steps, ``P = T - leave``, from
noisy to clean, and roll back to the start; near the end a window is as short as what is left. They stay at position l

==================  ==================================================================================================
window              for so many iterations
==================  ==================================================================================================
sliding             ``every``
decaying            ``floor(every (1 - l/P) + least l/P)``
exponential         ``ceil(every exp(-rate max(0, l - after)))``
random              1 (or ``every``), at a place drawn anew
==================  ==================================================================================================

A stride of 1 is the published overlap of all steps but one, a stride as long as the window no overlap, a fixed window
(``Unchanged``) MixGRPO-Flash*. The published code has ``leave = 2`` and may come to stand at P itself, where its window
is empty and nothing is trained; that position is left out here.

Reference: Li et al. 2025, arXiv:2507.21802, section 3 and its code (progressive, decay, exp_decay, random).
"""

import bisect
import dataclasses
import itertools
import math
from abc import abstractmethod
from dataclasses import dataclass

import torch

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.base import Turn
from girsanov.methods.policy_gradient.schedules import SamplerSchedule
from girsanov.noise import generator
from girsanov.samplers.base import Sampler
from girsanov.samplers.mixed import Mixed

WINDOW_STREAM = 7102  # keeps the choice of windows apart from other noise


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
    def start(self, positions: int, length: int, turn: Turn) -> int:
        """The first step of a window of so many steps, 0 .. positions - 1."""

    def at(self, sampler: Sampler, grid: Grid, turn: Turn) -> Sampler:
        """The mixed sampler with its window where it belongs in this iteration."""
        if not isinstance(sampler, Mixed):
            raise GirsanovError(
                f"a window moves over a mixed sampler and {type(sampler).__name__} is not one: use "
                "Mixed(FlowSDE(0.7), Euler(), length=4)"
            )
        positions = max(1, len(grid) - self.leave)
        first = self.start(positions, sampler.length, turn)
        return dataclasses.replace(sampler, start=first, length=min(sampler.length, positions - first))


@dataclass(frozen=True)
class RandomWindow(Window):
    """A window anywhere within the first ``share`` of the positions (Flow-GRPO-Fast: half), never shortened."""

    share: float = 1.0

    def start(self, positions: int, length: int, turn: Turn) -> int:
        """Uniform, drawn anew every so many iterations."""
        key = (turn.seed, WINDOW_STREAM, turn.index // self.every)
        places = max(1, math.ceil(self.share * positions) - length + 1)
        return int(torch.randint(places, (1,), generator=generator(key)))


@dataclass(frozen=True)
class SlidingWindow(Window):
    """Moves by ``stride`` steps every so many iterations."""

    stride: int = 1

    def stay(self, position: int, positions: int) -> int:
        """Iterations at a position, at least 1."""
        return self.every

    def start(self, positions: int, length: int, turn: Turn) -> int:
        """The position whose turn it is."""
        if self.stride < 1:
            raise GirsanovError(f"a window moves on by at least 1 step, not {self.stride}: Unchanged() leaves it there")
        places = range(0, positions, self.stride)
        ends = list(itertools.accumulate(self.stay(k, positions) for k in places))
        return places[bisect.bisect_right(ends, turn.index % ends[-1])]


@dataclass(frozen=True)
class DecayingWindow(SlidingWindow):
    """Stays ``every`` iterations at the first position, falling linearly towards ``least`` (None: a quarter)."""

    least: int | None = None

    def stay(self, position: int, positions: int) -> int:
        """``every (1 - l/P) + least l/P``, rounded down."""
        least = max(1, self.every // 4) if self.least is None else self.least
        share = position / positions
        return max(1, least, int(self.every * (1 - share) + least * share))


@dataclass(frozen=True)
class ExponentialWindow(SlidingWindow):
    """Stays ``every exp(-rate max(0, l - after))`` iterations at position l."""

    rate: float = 0.1
    after: int = 13

    def stay(self, position: int, positions: int) -> int:
        """``every exp(-rate relu(l - after))``, rounded up."""
        return math.ceil(self.every * math.exp(-self.rate * max(0, position - self.after)))
