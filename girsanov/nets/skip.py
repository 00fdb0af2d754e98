r"""How a value network leans on the reward of the denoised sample: ``V = c_skip(t) RM(x0_hat) + c_out(t) F(t, x)``.

At t = 0 the denoised sample is the sample, so ``c_skip = 1, c_out = 0`` make V the reward there. On Gaussian data with
a quadratic reward the exact weights are known (eta = 1, ``s_t^2`` the variance of the data given x_t):

* the value of the *pretrained* model is ``RM(x0_hat) - a s_t^2 / 2``: c_skip = 1 at every time;
* the *optimal* value with a KL is ``RM(x0_hat) / (1 + a s_t^2 / beta)`` plus a function of time.

``s_t^2`` is ``s_0^2 w(t)`` with the share ``w = sigma^2 / (alpha^2 s_0^2 + sigma^2)`` of the variance that is still
open, 0 at data and 1 at noise.

==========  =======================  ================  =============================================================
skip        c_skip                   c_out             source
==========  =======================  ================  =============================================================
cosine      ``cos(pi t / 2)``        ``sin(pi t / 2)``  arXiv:2502.01819, Eq. 20, and its code
linear      ``1 - t``                ``t``             the same, ablation
complement  ``cos(pi t / 2)``        ``1 - c_skip``    the same, ablation
full        1                        w                 exact for evaluation, derived here
tempered    ``1 / (1 + c w)``        w                 exact for the optimum; c > -1 and s_0 are learned, from c = 0
none        0                        1                 for rewards without a gradient: F is the value
==========  =======================  ================  =============================================================

A tempered skip is monotone in t: it falls for rewards that curve down (c > 0) and rises for others.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.precision import as_wide, onto
from girsanov.processes import Schedule

LEVER = 10.0
"""What a learned number of a skip is multiplied with: Adam moves it as far in 100 steps as a network's in 1000."""


class Skip(ABC):
    """The two weights as functions of time.

    Attributes:
        uses_reward: whether the reward of the denoised sample enters.
        start: first values of what is learned.
    """

    uses_reward: ClassVar[bool] = True
    start: ClassVar[tuple[float, ...]] = ()

    @abstractmethod
    def __call__(self, t: Tensor, c: Schedule, learned: Tensor) -> tuple[Tensor, Tensor]:
        """``(c_skip, c_out)`` at times t [] or [B] with their schedule; ``learned`` has the length of ``start``."""


@dataclass(frozen=True)
class CosineSkip(Skip):
    """cos and sin, as published."""

    def __call__(self, t: Tensor, c: Schedule, learned: Tensor) -> tuple[Tensor, Tensor]:
        """``cos(pi t / 2), sin(pi t / 2)``."""
        return torch.cos(0.5 * math.pi * t), torch.sin(0.5 * math.pi * t)


@dataclass(frozen=True)
class LinearSkip(Skip):
    """Linear, as in the published ablation."""

    def __call__(self, t: Tensor, c: Schedule, learned: Tensor) -> tuple[Tensor, Tensor]:
        """``1 - t, t``."""
        return 1 - t, t


@dataclass(frozen=True)
class ComplementSkip(Skip):
    """cos and its complement, as in the published ablation."""

    def __call__(self, t: Tensor, c: Schedule, learned: Tensor) -> tuple[Tensor, Tensor]:
        """``cos(pi t / 2), 1 - cos(pi t / 2)``."""
        skip = torch.cos(0.5 * math.pi * t)
        return skip, 1 - skip


@dataclass(frozen=True)
class FullSkip(Skip):
    """The whole reward at every time.

    Attributes:
        data_std: standard deviation of the data.
    """

    data_std: float = 1.0

    def __post_init__(self) -> None:
        if not self.data_std > 0:
            raise GirsanovError(f"the standard deviation of the data must be positive, not {self.data_std}")

    def __call__(self, t: Tensor, c: Schedule, learned: Tensor) -> tuple[Tensor, Tensor]:
        """``1, w``."""
        return torch.ones_like(c.alpha), open_share(c, self.data_std)


@dataclass(frozen=True)
class TemperedSkip(Skip):
    """The shape of the optimal value, learned.

    Attributes:
        data_std: standard deviation of the data, where learning starts.
    """

    data_std: float = 1.0
    start: ClassVar[tuple[float, ...]] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if not self.data_std > 0:
            raise GirsanovError(f"the standard deviation of the data must be positive, not {self.data_std}")

    def __call__(self, t: Tensor, c: Schedule, learned: Tensor) -> tuple[Tensor, Tensor]:
        """``1 / (1 + (e^p - 1) w), w`` with ``p`` and ``log s_0`` learned."""
        p, stretch = (LEVER * as_wide(learned)).unbind()
        now = dataclasses.replace(c, alpha=onto(c.alpha, p.device), sigma=onto(c.sigma, p.device))
        w = open_share(now, self.data_std * stretch.exp())
        return 1 / (1 + torch.expm1(p) * w), w


@dataclass(frozen=True)
class NoSkip(Skip):
    """The network alone."""

    uses_reward: ClassVar[bool] = False

    def __call__(self, t: Tensor, c: Schedule, learned: Tensor) -> tuple[Tensor, Tensor]:
        """``0, 1``."""
        return torch.zeros_like(c.alpha), torch.ones_like(c.alpha)


def open_share(c: Schedule, data_std: float | Tensor) -> Tensor:
    """``w = sigma^2 / (alpha^2 s_0^2 + sigma^2)``, of the shape of the schedule."""
    return c.sigma**2 / ((c.alpha * data_std) ** 2 + c.sigma**2)


SKIPS: dict[str, type[Skip]] = {
    "tempered": TemperedSkip,
    "full": FullSkip,
    "cosine": CosineSkip,
    "linear": LinearSkip,
    "complement": ComplementSkip,
    "none": NoSkip,
}
"""Every skip by name."""
