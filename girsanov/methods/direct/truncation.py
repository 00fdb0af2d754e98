r"""How many steps at the data end a reward's gradient flows through, K of N.

References: Clark et al. 2023, arXiv:2309.17400 (the last K); Prabhudesai et al. 2023, arXiv:2310.03739 (random K:
the first differentiable step is drawn from N(42, 5) of 50 in the released code, or uniformly).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from girsanov.errors import GirsanovError
from girsanov.methods.base import Turn
from girsanov.noise import generator

CUT_STREAM = 7301  # keeps the choice of K apart from other noise


class Truncation(ABC):
    """A choice of K, made once an iteration and alike on every process."""

    @abstractmethod
    def __call__(self, n: int, turn: Turn) -> int:
        """K between 1 and n. Raises GirsanovError if the choice does not fit the n steps."""


@dataclass(frozen=True)
class LastK(Truncation):
    """Always the last ``k`` steps; None is all of them."""

    k: int | None = None

    def __post_init__(self) -> None:
        if self.k is not None and self.k < 1:
            raise GirsanovError(f"a gradient flows through at least one step, not {self.k}")

    def __call__(self, n: int, turn: Turn) -> int:
        """``k``."""
        if self.k is not None and self.k > n:
            raise GirsanovError(f"k = {self.k} exceeds the {n} steps of the grid: lower it, or leave it out for all")
        return n if self.k is None else self.k


@dataclass(frozen=True)
class GaussianK(Truncation):
    """``round(N(mean n, (std n)^2))``, kept between 1 and n; the default is AlignProp's 8 +- 5 of 50."""

    mean: float = 0.16
    std: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.mean <= 1 or self.std < 0:
            raise GirsanovError(f"mean and std are shares of the grid, 0 < mean <= 1 and std >= 0, not {self}")

    def __call__(self, n: int, turn: Turn) -> int:
        """Keyed by (seed, iteration)."""
        z = torch.randn((), generator=generator((turn.seed, CUT_STREAM, turn.index)), dtype=torch.float64)
        return min(n, max(1, round(n * (self.mean + self.std * float(z)))))


@dataclass(frozen=True)
class UniformK(Truncation):
    """Uniform on ``low .. high`` shares of the grid, rounded up: (0, 1] is 1 .. n."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise GirsanovError(f"low and high are shares of the grid with 0 <= low < high <= 1, not {self}")

    def __call__(self, n: int, turn: Turn) -> int:
        """Keyed by (seed, iteration)."""
        u = torch.rand((), generator=generator((turn.seed, CUT_STREAM, turn.index)), dtype=torch.float64)
        first, last = int(self.low * n), max(int(self.low * n) + 1, round(self.high * n))
        return 1 + first + int(float(u) * (last - first))


TRUNCATIONS: dict[str, type[Truncation]] = {"last": LastK, "gaussian": GaussianK, "uniform": UniformK}
"""Every truncation by name."""
