r"""Noising processes: from data at t = 0 to noise at t = 1.

.. math:: x_t = \alpha_t x_0 + \sigma_t \epsilon, \qquad \epsilon \sim N(0, I)

A process is the pair (alpha, sigma) and its time derivatives. Everything else follows: with the Wronskian
``W = alpha d_sigma - sigma d_alpha`` the forward SDE ``dx = f x dt + g dB`` that has these marginals is

.. math:: f = \dot\alpha / \alpha, \qquad g^2 = 2 \sigma \dot\sigma - 2 f \sigma^2 = 2 \sigma W / \alpha

Times are float64 tensors of shape ``[]`` (a grid step, on the host, so that no step waits for the accelerator) or
``[B]`` (one time a sample).

References: Song et al. 2021, arXiv:2011.13456 (VP, VE); Nichol & Dhariwal 2021, arXiv:2102.09672 (cosine);
Karras et al. 2022, arXiv:2206.00364; Liu et al. 2022, arXiv:2209.03003 (rectified flow).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.precision import widest


@dataclass(frozen=True)
class Schedule:
    """The process at a time: ``alpha, sigma`` and their derivatives in t, each of the shape of t, float64."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor

    @property
    def wronskian(self) -> Tensor:
        """``W = alpha d_sigma - sigma d_alpha``, positive: the rate at which signal turns into noise."""
        return self.alpha * self.d_sigma - self.sigma * self.d_alpha


def as_time(t: float | Tensor) -> Tensor:
    """The time as a float64 tensor of shape [] or [B] (on MPS float32); raises outside [0, 1] (host tensors)."""
    t = torch.as_tensor(t, dtype=widest(t.device) if isinstance(t, Tensor) else torch.float64)
    if t.ndim > 1:
        raise GirsanovError(f"a time has shape [] or [B], not {list(t.shape)}: pass one time, or one per sample")
    inside = 0 <= float(t.detach()) <= 1 if t.ndim == 0 else t.device.type != "cpu" or bool(((t >= 0) & (t <= 1)).all())
    if not inside:
        raise GirsanovError(
            f"time {t.tolist()} lies outside [0, 1]: data is at t = 0 and noise at t = 1, so divide a step index by "
            "the number of training steps"
        )
    return t


class Process(ABC):
    """A noising process. Subclasses give ``_schedule`` and ``time_of_rho``; the rest is derived."""

    prior_std: float = 1.0
    """Standard deviation of the noise that sampling starts from."""

    @abstractmethod
    def _schedule(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``alpha, sigma, d_alpha, d_sigma`` at float64 times."""

    @abstractmethod
    def time_of_rho(self, rho: Tensor) -> Tensor:
        """The time at which ``sigma / alpha`` equals rho (float64, any shape)."""

    def __call__(self, t: float | Tensor) -> Schedule:
        """The schedule at t, of shape [] or [B]. Raises GirsanovError outside [0, 1]."""
        return Schedule(*self._schedule(as_time(t)))

    def rho(self, t: float | Tensor) -> Tensor:
        """Noise-to-signal ratio ``rho = sigma / alpha`` (infinite where alpha = 0)."""
        c = self(t)
        return c.sigma / c.alpha

    def f(self, t: float | Tensor) -> Tensor:
        """Drift rate of the forward SDE, ``d_alpha / alpha`` (infinite where alpha = 0)."""
        c = self(t)
        return c.d_alpha / c.alpha

    def g2(self, t: float | Tensor) -> Tensor:
        """Squared diffusion of the forward SDE, ``2 sigma W / alpha`` (infinite where alpha = 0)."""
        c = self(t)
        return 2 * c.sigma * c.wronskian / c.alpha

    def prior(self, z: Tensor) -> Tensor:
        """Standard normal noise [B, *D] to the state that sampling starts from, ``prior_std * z``."""
        return z * self.prior_std


@dataclass(frozen=True)
class RectifiedFlow(Process):
    """``alpha = 1 - t, sigma = t``: straight lines between data and noise."""

    def _schedule(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return 1 - t, t, -torch.ones_like(t), torch.ones_like(t)

    def time_of_rho(self, rho: Tensor) -> Tensor:
        """``1 / (1 + 1 / rho)``, which is 1 at infinite rho."""
        return 1 / (1 + 1 / rho)


@dataclass(frozen=True)
class Cosine(Process):
    """``alpha = cos(pi t / 2), sigma = sin(pi t / 2)``: the variance-preserving quarter circle."""

    def _schedule(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        h = math.pi / 2
        alpha, sigma = torch.sin(h * (1 - t)), torch.sin(h * t)  # sin(h (1 - t)) is exactly 0 at t = 1, cos is not
        return alpha, sigma, -h * sigma, h * alpha

    def time_of_rho(self, rho: Tensor) -> Tensor:
        """``(2 / pi) atan(rho)``."""
        return torch.atan(rho) * (2 / math.pi)


@dataclass(frozen=True)
class VP(Process):
    r"""Variance preserving with linear beta: ``alpha = exp(-(beta_min t + (beta_max - beta_min) t^2 / 2) / 2)``."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise GirsanovError(f"VP needs 0 < beta_min <= beta_max, not {self.beta_min} and {self.beta_max}")

    def _schedule(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        slope = self.beta_max - self.beta_min
        log_alpha = -0.5 * (self.beta_min * t + 0.5 * slope * t**2)
        alpha, sigma = log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()
        d_alpha = -0.5 * (self.beta_min + slope * t) * alpha
        return alpha, sigma, d_alpha, -alpha * d_alpha / sigma  # d_sigma is infinite at t = 0

    def time_of_rho(self, rho: Tensor) -> Tensor:
        """Root of ``beta_min t + (beta_max - beta_min) t^2 / 2 = log(1 + rho^2)``."""
        b, c = self.beta_min, torch.log1p(rho**2)
        return 2 * c / (b + (b**2 + 2 * (self.beta_max - b) * c).sqrt())


@dataclass(frozen=True)
class VE(Process):
    """Variance exploding: ``alpha = 1, sigma = sigma_max t`` (the clock of EDM up to its unit)."""

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not self.sigma_max > 0:
            raise GirsanovError(f"VE needs sigma_max > 0, not {self.sigma_max}")
        object.__setattr__(self, "prior_std", float(self.sigma_max))

    def _schedule(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        one = torch.ones_like(t)
        return one, self.sigma_max * t, torch.zeros_like(t), self.sigma_max * one

    def time_of_rho(self, rho: Tensor) -> Tensor:
        """``rho / sigma_max``."""
        return rho / self.sigma_max


@dataclass(frozen=True)
class VPTable(Process):
    r"""Variance preserving from a table of ``alpha_bar_i = alpha^2``, i = 0 .. N-1, as discrete models are trained.

    Table index i is time ``t = (i + 1) / N``. Between table points the log signal-to-noise ratio is linear in t, so the
    process is exact at the points; below ``t = 1/N`` the ratio rho goes linearly to 0, so that t = 0 is clean data.
    At a table point the derivative is the one of the interval on its data side.
    """

    alphas_cumprod: Sequence[float]
    _t: Tensor = field(init=False, repr=False, compare=False)
    _half_log_snr: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        table = torch.as_tensor(self.alphas_cumprod, dtype=torch.float64).cpu()
        ok = table.ndim == 1 and table.numel() > 1 and bool(((table > 0) & (table < 1)).all())
        if not ok or not bool((table.diff() < 0).all()):
            raise GirsanovError("a table of alpha_bar must be one list of falling numbers inside (0, 1)")
        object.__setattr__(self, "alphas_cumprod", tuple(table.tolist()))
        object.__setattr__(self, "_t", torch.arange(1, len(table) + 1, dtype=torch.float64) / len(table))
        object.__setattr__(self, "_half_log_snr", 0.5 * torch.logit(table))

    @classmethod
    def stable_diffusion(cls, n: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> "VPTable":
        """The "scaled linear" betas of Stable Diffusion: ``sqrt(beta)`` linear over n steps."""
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, n, dtype=torch.float64) ** 2
        return cls(torch.cumprod(1 - betas, 0).tolist())

    def index(self, i: int) -> Tensor:
        """The time of table index i, ``(i + 1) / N``."""
        return self._t[i]

    def _schedule(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        knots, lam = self._t.to(t.device), self._half_log_snr.to(t.device)
        j = torch.searchsorted(knots, t.contiguous()).clamp(1, len(knots) - 1)
        slope = (lam[j] - lam[j - 1]) / (knots[j] - knots[j - 1])
        inner = lam[j - 1] + slope * (t - knots[j - 1])
        below = t <= knots[0]  # rho linear in t, so lambda = -log rho has slope -1/t and sigma has a finite one
        rate = torch.exp(-lam[0]) / knots[0]
        rho = torch.where(below, rate * t, torch.exp(-inner))
        d_rho = torch.where(below, rate.expand_as(t), -slope * torch.exp(-inner))
        alpha = (1 + rho**2).rsqrt()
        return alpha, rho * alpha, -rho * d_rho * alpha**3, d_rho * alpha**3

    def time_of_rho(self, rho: Tensor) -> Tensor:
        """Inverse of the piecewise interpolation."""
        knots, lam = self._t.to(rho.device), self._half_log_snr.to(rho.device)
        target = -torch.log(rho)
        j = torch.searchsorted(-lam, -target.contiguous()).clamp(1, len(lam) - 1)
        inner = knots[j - 1] + (target - lam[j - 1]) * (knots[j] - knots[j - 1]) / (lam[j] - lam[j - 1])
        return torch.where(target >= lam[0], rho * knots[0] * torch.exp(lam[0]), inner)


PROCESSES: dict[str, type[Process]] = {
    "rectified-flow": RectifiedFlow,
    "cosine": Cosine,
    "vp": VP,
    "ve": VE,
    "vp-table": VPTable,
}
"""Every process by name; the law tests run over this dict."""
