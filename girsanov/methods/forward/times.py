"""At which times samples are re-noised.

The k-th of n draws takes its uniform number from the k-th of n equal strata, so the draws of one sample spread over
time (one draw: plain uniform).

Reference: Esser et al. 2024, arXiv:2403.03206, section 3.1 (logit-normal).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.precision import onto


class Times(ABC):
    """A law of times."""

    @abstractmethod
    def of(self, u: Tensor, grid: Grid) -> Tensor:
        """Uniform numbers [B] in [0, 1) to times [B], float64; ``grid`` is the sampling grid."""

    def __call__(self, u: Tensor, k: int, n: int, grid: Grid) -> Tensor:
        """The times of the k-th of n draws."""
        return self.of(((u + k) / n).clamp(max=1 - 1e-12), grid)


@dataclass(frozen=True)
class UniformTimes(Times):
    """Uniform between ``low`` and ``high``."""

    low: float = 1e-3
    high: float = 0.999

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise GirsanovError(f"training times lie in [0, 1], low below high, not {self.low} and {self.high}")

    def of(self, u: Tensor, grid: Grid) -> Tensor:
        """``low + u (high - low)``."""
        return self.low + u * (self.high - self.low)


@dataclass(frozen=True)
class GridTimes(Times):
    """The times at which the sampling grid asks the network; with as many draws as steps, each of them once.

    ``skip`` leaves out that many steps at the data end (published: the last 1 %, so none of 10 steps).
    """

    skip: int = 0

    def of(self, u: Tensor, grid: Grid) -> Tensor:
        """``ts[floor(u n)]``."""
        n = len(grid) - self.skip
        if n < 1:
            raise GirsanovError(f"skip = {self.skip} leaves no step of the grid's {len(grid)}: lower it")
        return onto(grid.ts, u.device)[(u * n).long()]


@dataclass(frozen=True)
class LogitNormalTimes(Times):
    """``t = sigmoid(mean + std z)``: more draws in the middle."""

    mean: float = 0.0
    std: float = 1.0

    def of(self, u: Tensor, grid: Grid) -> Tensor:
        """``sigmoid(mean + std Phi^{-1}(u))``, within [1e-4, 1 - 1e-4]."""
        z = torch.special.ndtri(u.clamp(1e-9, 1 - 1e-9))
        return torch.sigmoid(self.mean + self.std * z).clamp(1e-4, 1 - 1e-4)
