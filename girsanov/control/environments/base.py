r"""The base of every environment: a controlled diffusion with a discounted, entropy-regularised reward.

.. math::
    dX = b(X, a)\, dt + \sigma(X, a)\, dB, \qquad
    V(x) = E_x \int_0^\infty e^{-\beta t} [ r(X, a) - \gamma \log \pi(a | X) ]\, dt

Symbols: b drift, sigma diffusion, r reward per unit time, beta = ``discount`` (1 / time; not fine-tuning's KL weight),
gamma = ``entropy``. A step of length dt is one of Euler and Maruyama, ``x + b dt + sigma sqrt(dt) z``; what it earns is
``r dt`` and what comes later counts ``exp(-beta dt)`` times. Reference: Zhao et al. 2023, arXiv:2305.18901.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from girsanov.control.solution import Solution
from girsanov.errors import GirsanovError


class Environment(ABC):
    """A batch of controlled diffusions; x is [B, n], a is [B, m], noise is [B, k] standard normal.

    Members are frozen dataclasses whose fields are the parameters. Nothing is drawn inside ``step`` and nothing is
    kept, so a batch may be of any size, dtype and device.

    Attributes:
        dt: length of a step (time).
        discount: beta (1 / time).
        entropy: gamma (reward per unit time and nat).
    """

    dt: float
    discount: float
    entropy: float

    @property
    @abstractmethod
    def state_dim(self) -> int:
        """n."""

    @property
    def states(self) -> tuple[str, ...]:
        """What the n states are called, in charts."""
        return ("state",) if self.state_dim == 1 else tuple(f"state {i}" for i in range(self.state_dim))

    @property
    @abstractmethod
    def action_dim(self) -> int:
        """m."""

    @property
    @abstractmethod
    def noise_dim(self) -> int:
        """k."""

    @abstractmethod
    def drift(self, x: Tensor, a: Tensor) -> Tensor:
        """b(x, a), [B, n]."""

    @abstractmethod
    def diffusion(self, x: Tensor, a: Tensor) -> Tensor:
        """sigma(x, a), [B, n, k]."""

    @abstractmethod
    def reward(self, x: Tensor, a: Tensor) -> Tensor:
        """r(x, a), [B], per unit time."""

    @abstractmethod
    def start(self, n: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """n states to start from, [n, state_dim], on the generator's device."""

    def step(self, x: Tensor, a: Tensor, noise: Tensor) -> Tensor:
        """The state [B, n] a time dt later."""
        out, sigma = torch.add(x, self.drift(x, a), alpha=self.dt), self.diffusion(x, a)
        for j in range(self.noise_dim):  # few, and short matrix products are slow
            out = torch.addcmul(out, sigma[:, :, j], noise[:, j : j + 1], value=math.sqrt(self.dt))
        return out

    def solution(self) -> Solution | None:
        """The exact solution in continuous time, or None where there is no closed form."""
        return None

    def chain(self) -> Solution | None:
        """The exact solution of the chain that ``step`` makes, bias in dt included, or None where unknown."""
        return None

    def check(self, x: Tensor, a: Tensor) -> None:
        """Raises GirsanovError unless x is [B, n] and a is [B, m], both finite (it waits for the device)."""
        for name, value, width in (("states", x, self.state_dim), ("actions", a, self.action_dim)):
            if value.ndim != 2 or value.shape[1] != width:
                raise GirsanovError(f"{name} of shape {list(value.shape)} do not fit: they are [B, {width}] here")
            if not bool(torch.isfinite(value).all()):
                raise GirsanovError(
                    f"the {name} hold NaN or infinite numbers: the policy has diverged, lower its step size"
                )
        if len(x) != len(a):
            raise GirsanovError(f"{len(x)} states and {len(a)} actions: give one action for each state")


def annuity(discount: float, dt: float) -> float:
    """What 1 per unit time for ever is worth: ``dt / (1 - exp(-discount dt))`` in steps, 1 / discount at dt = 0."""
    return dt / -math.expm1(-discount * dt) if dt else 1 / discount


def normal(n: int, size: int, generator: torch.Generator | None, dtype: torch.dtype) -> Tensor:
    """Standard normal numbers [n, size] on the generator's device."""
    device = "cpu" if generator is None else generator.device
    return torch.randn(n, size, generator=generator, dtype=dtype, device=device)
