r"""What a policy pays for its action while it samples: the running reward of score as action, negated.

The action is the score a used in the sampler's drift, and the reference's action is its own score s. The price of a
unit of time is ``K(t) |a - s|^2 / 2``, that of a step whose mean was shifted by m is ``c |m|^2 / 2``:

======  =======================================  ==========================  =======================================
price   what it is                               K(t)                        c of a step
======  =======================================  ==========================  =======================================
kl      beta times the path KL (Girsanov)        ``beta l^2 / (eta^2 g^2)``  ``beta / std^2``
energy  ``lam |v - v_ref|^2 / 2`` per unit time  ``lam (g^2 / 2)^2``         ``lam |dt| / gain^2``
======  =======================================  ==========================  =======================================

with the lever ``l = (1 + eta^2) g^2 / 2`` of the action on the drift; at eta = 1 the first is ``beta g^2 |a - s|^2 /
2``. The path KL of a deterministic sampler is infinite, and an energy takes its place. The best answer to a value's
gradient G is ``m = G / c``; written as a regression, ``max <m, G> - c |m|^2 / 2`` is ``min c |m - G / c|^2``.

References: Zhao et al. 2025, arXiv:2502.01819 (the running reward; as their code computes it); Zhao et al. 2024,
arXiv:2409.08400 (deterministic samplers).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.precision import as_wide
from girsanov.processes import Process
from girsanov.reductions import square_distance
from girsanov.types import Kernel, Step


class Price(ABC):
    """A running cost, quadratic in the action."""

    @property
    @abstractmethod
    def weight(self) -> float:
        """Its weight against the reward (beta or lam)."""

    @abstractmethod
    def acts(self, stochastic: bool) -> bool:
        """Whether a step is priced (and so can be trained), given whether it draws noise."""

    @abstractmethod
    def stiffness(self, kernel: Kernel, step: Step) -> float:
        """``c`` of a step that is priced."""

    @abstractmethod
    def rate(self, process: Process, eta: float, t: float | Tensor) -> Tensor:
        """``K(t)``, float64 of the shape of t."""

    def charge(self, kernel: Kernel, step: Step, mean: Tensor, reference: Tensor) -> Tensor:
        """``c |mean - reference|^2 / 2`` of a step, float64 [B]; 0 for a step that is not priced."""
        if not self.acts(kernel.stochastic):
            return as_wide(mean.new_zeros(len(mean)))
        return 0.5 * self.stiffness(kernel, step) * square_distance(mean, reference)


@dataclass(frozen=True)
class PathKLPrice(Price):
    """beta times the path KL; steps without noise are free and cannot be moved."""

    beta: float = 1.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise GirsanovError(f"beta weighs the KL and must be positive, not {self.beta}: use price=null for none")

    @property
    def weight(self) -> float:
        """beta."""
        return self.beta

    def acts(self, stochastic: bool) -> bool:
        """Where there is noise."""
        return stochastic

    def stiffness(self, kernel: Kernel, step: Step) -> float:
        """``beta / std^2``."""
        return self.beta / float(kernel.std) ** 2

    def rate(self, process: Process, eta: float, t: float | Tensor) -> Tensor:
        """``beta (1 + eta^2)^2 g^2 / (4 eta^2)``. Raises GirsanovError at eta = 0, where a path KL is infinite."""
        if not eta > 0:
            raise GirsanovError("the path KL of a deterministic sampler is infinite: use EnergyPrice(lam)")
        return self.beta * (1 + eta**2) ** 2 / (4 * eta**2) * process.g2(t)


@dataclass(frozen=True)
class EnergyPrice(Price):
    """``lam |v - v_ref|^2 / 2`` per unit of time, for deterministic samplers."""

    lam: float = 1.0

    def __post_init__(self) -> None:
        if not self.lam > 0:
            raise GirsanovError(f"lam weighs the energy and must be positive, not {self.lam}: use price=null for none")

    @property
    def weight(self) -> float:
        """lam."""
        return self.lam

    def acts(self, stochastic: bool) -> bool:
        """Everywhere."""
        return True

    def stiffness(self, kernel: Kernel, step: Step) -> float:
        """``lam |dt| / gain^2``."""
        assert kernel.gain is not None
        return self.lam * abs(float(step.h)) / float(kernel.gain) ** 2

    def rate(self, process: Process, eta: float, t: float | Tensor) -> Tensor:
        """``lam g^4 / 4``: a score shifted by d shifts the velocity by ``-g^2 d / 2``."""
        return 0.25 * self.lam * process.g2(t) ** 2


PRICES: dict[str, type[Price]] = {"kl": PathKLPrice, "energy": EnergyPrice}
"""Every price by name."""
