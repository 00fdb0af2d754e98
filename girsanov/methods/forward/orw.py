r"""ORW-CFM-W2: flow matching on samples weighted by ``exp(tau r)``, held to the reference.

.. math:: L = \big[ e^{\tau A}\, \| v - u \|^2 + \kappa\, \| v - v_{ref} \|^2 \big] / d

The minimiser at one point is ``(E[w u | x_t] + kappa v_ref) / (E[w | x_t] + kappa)``. With kappa = 0 and samples of a
law q it is the exact velocity of ``q exp(tau r)``, for any reward: the only member whose single step is the tilt
itself, with ``beta = 1 / tau``. It is online: after n iterations the law is ``q_0 exp(n tau r)`` and collapses to the
best sample, unless kappa (which bounds the Wasserstein-2 distance to the reference) stops it. With A the reward less
its mean, the weight of a prompt differs by a constant factor, which only rescales kappa.

Reference: Fan et al. 2025, arXiv:2502.06061.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.forward.base import ForwardMethod
from girsanov.methods.forward.draws import Draw, ForwardBatch
from girsanov.methods.forward.errors import mean_square


@dataclass(frozen=True, kw_only=True)
class ORW(ForwardMethod):
    """Online reward-weighted flow matching with a Wasserstein-2 penalty.

    Attributes:
        tau: inverse temperature of the weights.
        kappa: weight of the distance from the reference.
    """

    tau: float = 0.5
    kappa: float = 1.0

    def __post_init__(self) -> None:
        if not (self.tau > 0 and self.kappa >= 0):
            raise GirsanovError(f"ORW-CFM-W2 needs tau > 0 and kappa >= 0, not {self.tau} and {self.kappa}")

    @property
    def frozen(self) -> tuple[str, ...]:
        """The reference, if it has a weight."""
        return ("reference",) if self.kappa > 0 else ()

    def loss(
        self, v: Tensor, frozen: Mapping[str, Tensor], draw: Draw, batch: ForwardBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``(e^{tau A} |v - u|^2 + kappa |v - v_ref|^2) / d``."""
        loss = (self.tau * batch.advantage).exp() * mean_square(v - draw.target)
        if self.kappa == 0:
            return loss, {}
        drift = mean_square(v - frozen["reference"])
        return loss + self.kappa * drift, {"drift": drift.detach().mean()}
