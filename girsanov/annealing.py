r"""Curves over training or over the steps of a sampler: a number as a function of the fraction u in [0, 1] done so far.

===========  =============================================================
constant     ``start``
linear       ``start + (end - start) u``
cosine       ``end + (start - end) (1 + cos(pi u)) / 2``
exponential  ``start (end / start)^u``
polynomial   ``end + (start - end) (1 - u)^power``
steps        the i-th of n values on the i-th of n equal parts
===========  =============================================================
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from girsanov.errors import GirsanovError


class Curve(ABC):
    """A number over a fraction of the way."""

    @abstractmethod
    def at(self, u: float) -> float:
        """The number at u in [0, 1]."""

    def over(self, n: int) -> tuple[float, ...]:
        """n values, the first at 0 and the last at 1 (one value: at 0)."""
        if n < 1:
            raise GirsanovError(f"a curve has at least one value, not {n}")
        return tuple(self.at(i / max(1, n - 1)) for i in range(n))


@dataclass(frozen=True)
class Constant(Curve):
    """The same number throughout."""

    start: float = 1.0

    def at(self, u: float) -> float:
        """``start``."""
        return self.start


@dataclass(frozen=True)
class Linear(Curve):
    """A straight line."""

    start: float = 2.0
    end: float = 1.0

    def at(self, u: float) -> float:
        """``start + (end - start) u``."""
        return self.start + (self.end - self.start) * u


@dataclass(frozen=True)
class CosineCurve(Curve):
    """Half a period of a cosine: flat at both ends."""

    start: float = 2.0
    end: float = 1.0

    def at(self, u: float) -> float:
        """``end + (start - end) (1 + cos(pi u)) / 2``."""
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * u))


@dataclass(frozen=True)
class Exponential(Curve):
    """A constant rate of growth or decay; both ends are positive."""

    start: float = 2.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not (self.start > 0 and self.end > 0):
            raise GirsanovError(f"an exponential curve goes between positive numbers, not {self.start} and {self.end}")

    def at(self, u: float) -> float:
        """``start (end / start)^u``."""
        return self.start * (self.end / self.start) ** u


@dataclass(frozen=True)
class Polynomial(Curve):
    """Fast at first for ``power > 1``, late for ``power < 1``."""

    start: float = 2.0
    end: float = 1.0
    power: float = 2.0

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise GirsanovError(f"the power of a curve must be positive, not {self.power}")

    def at(self, u: float) -> float:
        """``end + (start - end) (1 - u)^power``."""
        return self.end + (self.start - self.end) * (1 - u) ** self.power


@dataclass(frozen=True)
class Staircase(Curve):
    """Equal parts, a value each."""

    values: tuple[float, ...] = (2.0, 1.0)

    def __post_init__(self) -> None:
        if not self.values:
            raise GirsanovError("a staircase needs at least one value")

    def at(self, u: float) -> float:
        """The value of the part that u lies in."""
        return self.values[min(len(self.values) - 1, int(u * len(self.values)))]


CURVES: dict[str, type[Curve]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": CosineCurve,
    "exponential": Exponential,
    "polynomial": Polynomial,
    "steps": Staircase,
}
"""Every curve by name."""
