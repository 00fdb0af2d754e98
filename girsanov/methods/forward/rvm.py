r"""Reward velocity matching: flow matching weighted by a signed reward, held by an anchor.

.. math:: L = \tfrac12 \big[ r\, \| v - u \|^2 + b\, \| v - v_{ref} \|^2 \big] / d, \qquad r = \text{scale} \cdot A

The same as ``(b + r)/2 |v - v_ref - a (u - v_ref)|^2`` with ``a = r / (b + r)``: where ``b + r`` is negative a sample
pushes without bound, and the authors give no guarantee of convergence; a small step size and an early stop are part of
the method. At ``v = v_ref`` its gradient is that of DiffusionNFT and RAM up to a factor.

Reference: arXiv:2608.23664, 2026 (published: advantage centred by prompt, divided by the std of the batch, clipped to
+-5, scale 0.1; b = 0 for video, 1e-4 for images).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.advantages.base import Advantage, GlobalStd
from girsanov.methods.advantages.robust import Clipped
from girsanov.methods.forward.base import ForwardMethod
from girsanov.methods.forward.draws import Draw, ForwardBatch
from girsanov.methods.forward.errors import mean_square


@dataclass(frozen=True, kw_only=True)
class RVM(ForwardMethod):
    """Reward velocity matching.

    Attributes:
        scale: reward of a unit of advantage.
        b: weight of the anchor.
    """

    advantage: Advantage = Clipped(GlobalStd(), 5.0)
    scale: float = 0.1
    b: float = 1e-4

    def __post_init__(self) -> None:
        if not (self.scale > 0 and self.b >= 0):
            raise GirsanovError(f"RVM needs scale > 0 and b >= 0, not {self.scale} and {self.b}")

    @property
    def frozen(self) -> tuple[str, ...]:
        """The reference, if it has a weight."""
        return ("reference",) if self.b > 0 else ()

    def loss(
        self, v: Tensor, frozen: Mapping[str, Tensor], draw: Draw, batch: ForwardBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``(r |v - u|^2 + b |v - v_ref|^2) / (2 d)``."""
        loss = 0.5 * self.scale * batch.advantage * mean_square(v - draw.target)
        if self.b == 0:
            return loss, {}
        drift = mean_square(v - frozen["reference"])
        return loss + 0.5 * self.b * drift, {"drift": drift.detach().mean()}
