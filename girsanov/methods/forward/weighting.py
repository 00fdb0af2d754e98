"""Functions w(e) of a squared error that stand for a negative log-likelihood.

Reference: Xue et al. 2025, arXiv:2509.25050 (the Huber form, in its code).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from girsanov.errors import GirsanovError


class ErrorWeight(ABC):
    """w(e) at a time."""

    @abstractmethod
    def __call__(self, error: Tensor, t: Tensor) -> Tensor:
        """Mean squared errors [B] at times [B] to [B], in the dtype of the errors."""


@dataclass(frozen=True)
class Plain(ErrorWeight):
    """``e``."""

    def __call__(self, error: Tensor, t: Tensor) -> Tensor:
        """``e``."""
        return error


@dataclass(frozen=True)
class Huber(ErrorWeight):
    """``(t / p) ((e + floor)^p - floor^p)``: slope t for small errors growing ever slower, p = 1 is ``t e``."""

    p: float = 0.25
    floor: float = 1e-10

    def __post_init__(self) -> None:
        if not (0 < self.p <= 1 and self.floor > 0):
            raise GirsanovError(f"a Huber weight needs 0 < p <= 1 and floor > 0, not {self.p} and {self.floor}")

    def __call__(self, error: Tensor, t: Tensor) -> Tensor:
        """``(t / p) ((e + floor)^p - floor^p)``."""
        return t.to(error) / self.p * ((error + self.floor) ** self.p - self.floor**self.p)
