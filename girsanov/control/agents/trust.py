r"""Penalties that keep a new policy near the old one, with a weight that adapts.

The gap between the performance of a new policy and its surrogate is bounded by a constant times
``E_{x ~ beta d} sqrt(KL(old || new))`` (Pinsker), so that, not the KL, is the natural distance:

.. math:: D = E_{x \sim \beta d} \sqrt{KL(\pi_{old}(\cdot | x) \| \pi(\cdot | x))} \quad (\mathtt{SqrtKL}), \qquad
    D = E\, KL \quad (\mathtt{LinearKL})

and after each iteration, with D of the policy it ended at,

    D > (1 + slack) target:  weight *= factor;      D < (1 - slack) target:  weight /= factor

A root of a KL is a norm of the step, not its square. So at one weight C the policy does not move at all where the
gradient, measured in the Fisher metric, is below ``C / sqrt 2``; it is the adapting that lets it go on. Near the
optimum the surrogate itself has a maximum, the weight falls, and the steps become those of policy iteration. The root
is smoothed within ``KL < 1e-12``, where its slope is infinite.

Reference: Zhao et al. 2023, arXiv:2305.18901 (CPPO; the rule; both distances).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from girsanov.adaptive import adapted
from girsanov.errors import GirsanovError

SMOOTH = 1e-12


@dataclass(frozen=True)
class TrustRegion(ABC):
    """A distance between policies and how its weight moves.

    Attributes:
        target: the distance an iteration aims at.
        slack: how far it may be off before the weight moves.
        factor: by which the weight moves.
        weight: at the start.
        least, most: where the weight ends.
    """

    target: float = 0.1
    slack: float = 0.1
    factor: float = 1.5
    weight: float = 1.0
    least: float = 1e-6
    most: float = 1e6

    def __post_init__(self) -> None:
        if not (self.target > 0 and 0 <= self.slack < 1 and self.factor > 1):
            raise GirsanovError(
                f"a trust region needs target > 0, 0 <= slack < 1 and factor > 1, not {self.target}, {self.slack} and "
                f"{self.factor}"
            )
        if not 0 < self.least <= self.weight <= self.most:
            raise GirsanovError(f"the weight {self.weight} must lie between least {self.least} and most {self.most}")

    @abstractmethod
    def distance(self, kl: Tensor) -> Tensor:
        """The distance at every state of ``KL(old || new)`` there."""

    def adapted(self, weight: float, distance: float) -> float:
        """The next weight, after an iteration that went as far as ``distance``."""
        bounds = {"least": self.least, "most": self.most}
        return adapted(weight, distance, self.target, slack=self.slack, factor=self.factor, **bounds)


@dataclass(frozen=True)
class SqrtKL(TrustRegion):
    """The square root of the KL, as published."""

    def distance(self, kl: Tensor) -> Tensor:
        """``sqrt(KL)``, smoothed at 0."""
        return (kl.clamp_min(0) + SMOOTH).sqrt() - SMOOTH**0.5


@dataclass(frozen=True)
class LinearKL(TrustRegion):
    """The KL itself, for comparison.

    Attributes:
        target: as ``SqrtKL``'s, squared.
    """

    target: float = 0.01

    def distance(self, kl: Tensor) -> Tensor:
        """``KL``."""
        return kl


TRUST_REGIONS: dict[str, type[TrustRegion]] = {
    "sqrt-kl": SqrtKL,
    "linear-kl": LinearKL,
}
"""Every trust region by name."""
