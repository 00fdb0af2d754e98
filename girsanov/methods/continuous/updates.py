r"""How a policy learns from a value: what the updates of score as action have in common, and the gradient form.

A step of a one-stage sampler shifts its mean by ``l dt`` times the action, so the integral of the advantage rate
(``rate.py``) over a step is ``<m, grad V> - c |m|^2 / 2`` in the shift m of the mean, with the price's c. The gradient
form climbs it,

.. math:: \max_\theta\; \sum_k E\big[ \langle m_\theta(x_k), G_k \rangle - \tfrac{c_k}{2} |m_\theta(x_k)|^2 \big],
          \qquad m_\theta = mean_\theta - mean_{ref}, \quad G_k = \nabla V(x_{k+1}, t_{k+1})

written as the regression ``c |m_theta - G / c|^2 / (weight d)`` of adjoint matching, whose costate is replaced by
``-grad V / beta``. G is taken at the state *after* the step: given ``x_k`` its mean is what the best shift needs on a
grid, where the one before the step, as published, is an O(dt) error. With V the policy's own value, price included,
the only fixed point is the path-KL optimum of the chain (energy: the proximal map); with V the mean terminal reward it
is that of a KL per step. Weights are those of ``g^2 dt``: the published ``g^2 dt {<mu, grad V> - beta |mu - s|^2 /
2}`` is this at eta = 1.

Reference: Zhao et al. 2025, arXiv:2502.01819 (a helper of their code computes ``grad V``; the form was derived here).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.base import Turn
from girsanov.methods.continuous.batch import Part, Seen
from girsanov.methods.continuous.price import Price
from girsanov.types import Kernel

Metrics = dict[str, Tensor]


class PolicyUpdate(ABC):
    """What the policy does with the value.

    Attributes:
        needs_gradient: whether it reads ``grad V``.
        needs_density: whether it reads the density of steps, so that they must draw noise.
        needs_old: whether it compares with the mean before the first of several updates.
    """

    needs_gradient: ClassVar[bool] = False
    needs_density: ClassVar[bool] = False
    needs_old: ClassVar[bool] = False

    def check(self, price: Price | None) -> None:  # noqa: B027 (nothing is a valid answer)
        """Raises GirsanovError if the update cannot do with this price."""

    @abstractmethod
    def trains(self, stochastic: bool, price: Price | None) -> bool:
        """Whether a step can be trained, given whether it draws noise."""

    @abstractmethod
    def wants(self, steps: Sequence[int]) -> set[int]:
        """The states (0 .. n) whose gradient of V the training of these steps needs."""

    @abstractmethod
    def signal(self, here: Seen, after: Seen, kernel: Kernel, price: Price | None, turn: Turn) -> Tensor:
        """What a step between two states is taught, [B, ...]."""

    @abstractmethod
    def loss(self, kernel: Kernel, part: Part, price: Price | None) -> tuple[Tensor, Metrics]:
        """Loss [B] of a step whose kernel under the policy is given (with its graph), and what to log."""


def size(shift: Tensor) -> Tensor:
    """Root mean square over the data dimensions, averaged over samples, []."""
    return shift.detach().flatten(1).square().mean(1).sqrt().mean()


@dataclass(frozen=True)
class GradientForm(PolicyUpdate):
    """The closed-form advantage, climbed: needs the value's gradient and a price."""

    needs_gradient: ClassVar[bool] = True

    def check(self, price: Price | None) -> None:
        """Without a price the target is infinite."""
        if price is None:
            raise GirsanovError(
                "the gradient form divides the value's gradient by a price: give price={kind: kl, beta: ...}, or use "
                "update=ratio, which needs none"
            )

    def trains(self, stochastic: bool, price: Price | None) -> bool:
        """What the price acts on."""
        return price is not None and price.acts(stochastic)

    def wants(self, steps: Sequence[int]) -> set[int]:
        """The states after the steps."""
        return {k + 1 for k in steps}

    def signal(self, here: Seen, after: Seen, kernel: Kernel, price: Price | None, turn: Turn) -> Tensor:
        """The best shift ``G / c``, [B, *D]."""
        assert price is not None and here.tr is not None and after.gradient is not None
        return after.gradient / price.stiffness(kernel, here.tr.step)

    def loss(self, kernel: Kernel, part: Part, price: Price | None) -> tuple[Tensor, Metrics]:
        """``c |m - G / c|^2 / (weight d)``."""
        assert price is not None and part.reference is not None
        shift = kernel.mean - part.reference
        factor = price.stiffness(kernel, part.tr.step) / (price.weight * shift[0].numel())
        loss = factor * (shift - part.signal).square().flatten(1).sum(1)
        unit = factor**0.5 * shift[0].numel() ** 0.5  # what the loss measures shifts in
        return loss, {"control": unit * size(shift), "target": unit * size(part.signal)}
