r"""The form for samplers of few steps: the value's gradient along a displacement that is clipped.

.. math:: L = -\, clip\big( \langle \nabla V(x_k),\; clip(x_{k+1}(\theta) - x_k, \pm \delta) \rangle, \pm 1 \big)

A step of a ten-step sampler is long, and ``grad V`` at its start says little of its end: the displacement is clipped
element by element, the product as a whole. ``x_{k+1}(theta) = mean_theta(x_k) + std z`` with the noise that was drawn;
``grad V`` is data for theta. There is no price in it, so nothing holds it to the reference but a small rate.

Reference: Zhao et al. 2025, arXiv:2502.01819, the CIFAR-10 code, which has an energy to minimise in the place of V and
clamps the next state to [-1, 1] (``bound=1``), on the sampler of Yoon et al. 2024, arXiv:2407.00626 (DxMI).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.base import Turn
from girsanov.methods.continuous.batch import Part, Seen
from girsanov.methods.continuous.price import Price
from girsanov.methods.continuous.rate import dot
from girsanov.methods.continuous.updates import Metrics, PolicyUpdate
from girsanov.precision import as_wide
from girsanov.types import Kernel


@dataclass(frozen=True)
class FewStepForm(PolicyUpdate):
    """The clipped displacement.

    Attributes:
        displacement: range of an element of ``x_{k+1} - x_k``.
        limit: range of the product.
        bound: range of the next state; None leaves it alone.
    """

    displacement: float = 0.1
    limit: float = 1.0
    bound: float | None = None

    needs_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("displacement", "limit", "bound"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise GirsanovError(f"{name} of the few-step form is a range and must be positive, not {value}")

    def trains(self, stochastic: bool, price: Price | None) -> bool:
        """All steps."""
        return True

    def wants(self, steps: Sequence[int]) -> set[int]:
        """The states where the steps begin."""
        return set(steps)

    def signal(self, here: Seen, after: Seen, kernel: Kernel, price: Price | None, turn: Turn) -> Tensor:
        """``grad V`` where the step begins, [B, *D]."""
        assert here.gradient is not None
        return here.gradient

    def loss(self, kernel: Kernel, part: Part, price: Price | None) -> tuple[Tensor, Metrics]:
        """The clipped product, and the price of the step if there is one."""
        after = kernel.mean + (part.tr.x_s - part.tr.mean)
        if self.bound is not None:
            after = after.clamp(-self.bound, self.bound)
        moved = after - part.tr.x_t
        gained = dot(part.signal, moved.clamp(-self.displacement, self.displacement))
        loss = -as_wide(gained.clamp(-self.limit, self.limit))
        metrics = {"clipped": as_wide(gained.detach().abs() > self.limit).mean()}
        if price is not None and part.reference is not None:
            loss = loss + price.charge(kernel, part.tr.step, kernel.mean, part.reference)
        return loss, metrics
