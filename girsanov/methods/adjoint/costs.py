r"""Running costs of a control, given by the gradient of their convex conjugate.

The control that minimises ``L(u) - <p, u>`` is ``u = grad L^*(p)``, so a cost enters a method through that one map
of the costate p [B, *D].

==========  ==========================  ==========================================================
cost        L(u)                        grad L^*(p)
==========  ==========================  ==========================================================
quadratic   ``lam |u|^2 / 2``           ``p / lam``
power       ``lam |u|^q / q, q > 1``    ``lam^(-1/(q-1)) |p|^((2-q)/(q-1)) p``
convex      any                         given
==========  ==========================  ==========================================================

The norm is the Euclidean one over the data dimensions. Reference: arXiv:2605.06583 (regularisers beyond the quadratic).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from girsanov.errors import GirsanovError


class Cost(ABC):
    """A convex running cost of a control."""

    @abstractmethod
    def control(self, p: Tensor) -> Tensor:
        """``grad L^*(p)``: the control that answers a costate, [B, *D]."""


@dataclass(frozen=True)
class QuadraticCost(Cost):
    """``lam |u|^2 / 2``."""

    lam: float = 1.0

    def __post_init__(self) -> None:
        _positive(self.lam)

    def control(self, p: Tensor) -> Tensor:
        """``p / lam``."""
        return p / self.lam


@dataclass(frozen=True)
class PowerCost(Cost):
    """``lam |u|^q / q``: above 2 it spares small controls, between 1 and 2 it makes them sparse in time."""

    lam: float = 1.0
    q: float = 3.0

    def __post_init__(self) -> None:
        _positive(self.lam)
        if not self.q > 1:
            raise GirsanovError(f"a power cost needs q > 1, not {self.q}: at q = 1 the optimal control is not unique")

    def control(self, p: Tensor) -> Tensor:
        """``lam^(-1/(q-1)) |p|^((2-q)/(q-1)) p``, 0 at p = 0."""
        norm = p.flatten(1).norm(dim=1).reshape(-1, *[1] * (p.ndim - 1))
        unit = p / norm.clamp_min(1e-30)  # |p|^((2-q)/(q-1)) alone is infinite at 0 for q > 2
        return unit * (norm / self.lam) ** (1 / (self.q - 1))


@dataclass(frozen=True)
class ConvexCost(Cost):
    """Any convex cost, given by ``grad L^*``: a callable [B, *D] -> [B, *D]."""

    conjugate_gradient: Callable[[Tensor], Tensor]

    def control(self, p: Tensor) -> Tensor:
        """The given map."""
        return self.conjugate_gradient(p)


def _positive(lam: float) -> None:
    if not lam > 0:
        raise GirsanovError(f"the weight of a running cost must be positive, not {lam}")


COSTS: dict[str, type[Cost]] = {"quadratic": QuadraticCost, "power": PowerCost, "convex": ConvexCost}
"""Every cost by name."""
