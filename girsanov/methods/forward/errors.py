r"""How far a velocity is from its regression target, per sample.

An error of the velocity is one of the denoised sample: ``x0_hat - x_0 = -(sigma / W)(v - u)`` with the Wronskian
``W = alpha d_sigma - sigma d_alpha`` (rectified flow: ``-t (v - u)``).

Reference: Zheng et al. 2025, arXiv:2509.16117 (self-normalised, in its code).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from girsanov.methods.forward.draws import Draw
from girsanov.predictions import scale


class ErrorNorm(ABC):
    """An error per sample."""

    @abstractmethod
    def __call__(self, v: Tensor, draw: Draw) -> Tensor:
        """Error of velocities v [B, *D] at a draw: [B], in the dtype of v."""


def mean_square(difference: Tensor) -> Tensor:
    """Mean square over the data dimensions, [B], in the dtype of [B, *D]."""
    return difference.square().flatten(1).mean(1)


@dataclass(frozen=True)
class VelocityError(ErrorNorm):
    """``|v - u|^2 / d``."""

    def __call__(self, v: Tensor, draw: Draw) -> Tensor:
        """``|v - u|^2 / d``."""
        return mean_square(v - draw.target)


@dataclass(frozen=True)
class SelfNormalisedX0(ErrorNorm):
    """``mean (x0_hat - x_0)^2 / sg(mean |x0_hat - x_0|)``: of about the same size at every time."""

    floor: float = 1e-5

    def __call__(self, v: Tensor, draw: Draw) -> Tensor:
        """The self-normalised error; the divisor has no gradient and is at least ``floor``."""
        error = (v - draw.target) * scale(draw.lever, v)
        return mean_square(error) / error.detach().abs().flatten(1).mean(1).clamp_min(self.floor)
