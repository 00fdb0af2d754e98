"""Which of a sampler's steps are trained in an iteration.

References: Xue et al. 2025, arXiv:2505.07818 (a random share); Liu et al. 2025, arXiv:2505.05470 (a window); Li et al.
2025, arXiv:2509.06040 and its code (pruned).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from girsanov.errors import GirsanovError
from girsanov.methods.base import Turn
from girsanov.noise import generator

STEP_STREAM = 7101  # keeps the choice of steps apart from other noise


class Steps(ABC):
    """Which of the K steps that have a density are trained in an iteration."""

    @abstractmethod
    def __call__(self, k: int, turn: Turn) -> list[int]:
        """Indices of 0 .. K - 1, noisiest first, the same on every process."""


@dataclass(frozen=True)
class AllSteps(Steps):
    """All of them but the last ``leave``; at least one."""

    leave: int = 0

    def __call__(self, k: int, turn: Turn) -> list[int]:
        """``0 .. K - 1 - leave``."""
        return list(range(max(1, k - self.leave)))


@dataclass(frozen=True)
class RandomSteps(Steps):
    """A random share of them, the last ``leave`` apart, drawn anew each iteration (DanceGRPO: 0.6)."""

    share: float = 0.6
    leave: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise GirsanovError(f"the share of trained steps must lie in (0, 1], not {self.share}")

    def __call__(self, k: int, turn: Turn) -> list[int]:
        """``max(1, floor(share (K - leave)))`` of them."""
        n = max(1, k - self.leave)
        order = torch.randperm(n, generator=generator((turn.seed, STEP_STREAM, turn.index)))
        return sorted(order[: max(1, int(self.share * n))].tolist())


@dataclass(frozen=True)
class WindowSteps(Steps):
    """The steps ``start .. start + length - 1`` of those that have a density."""

    start: int = 0
    length: int = 2

    def __call__(self, k: int, turn: Turn) -> list[int]:
        """The window. Raises GirsanovError if it leaves ``0 .. K - 1``."""
        if self.start < 0 or self.length < 1 or self.start + self.length > k:
            raise GirsanovError(
                f"the window of trained steps {self.start} .. {self.start + self.length - 1} leaves the {k} steps that "
                "have noise: move it, shorten it, or take more steps"
            )
        return list(range(self.start, self.start + self.length))


@dataclass(frozen=True)
class Subset(Steps):
    """The last ``late`` steps, and ``early`` random ones of the others, drawn anew each iteration.

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

    def __call__(self, k: int, turn: Turn) -> list[int]:
        """Keyed by (seed, iteration)."""
        cut = max(0, k - self.late)
        order = torch.randperm(cut, generator=generator((turn.seed, STEP_STREAM, turn.index)))[: self.early]
        return [*sorted(order.tolist()), *range(cut, k)]


@dataclass(frozen=True)
class PrunedSteps(Steps):
    """All steps but the window ``first .. first + length - 1``, which moves one step towards ``stop`` every so often.

    BranchGRPO's depth pruning: the steps after the last split say the same of all siblings, and cost the most.
    """

    first: int = 15
    length: int = 4
    every: int = 30
    stop: int = 9

    def __post_init__(self) -> None:
        if not (0 <= self.stop <= self.first and self.length >= 1 and self.every >= 1):
            raise GirsanovError(f"a pruned window starts at or after its stop and holds at least one step, not {self}")

    def __call__(self, k: int, turn: Turn) -> list[int]:
        """``shift = min(i // every, first - stop)``. Raises GirsanovError if nothing is left."""
        low = self.first - min(turn.index // self.every, self.first - self.stop)
        left = [i for i in range(k) if not low <= i < low + self.length]
        if not left:
            raise GirsanovError(f"pruning {self.length} steps from {low} on leaves none of {k}: shorten it")
        return left
