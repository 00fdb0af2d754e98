r"""Reinforce adjoint matching: regress the velocity on a target that the reward moves.

.. math:: L = \| v - \mathrm{sg}[\, v_{ref} + R\, (u - v)\,] \|^2 / d, \qquad R = A / \beta

(``sg`` stops the gradient). At its fixed point ``v = v_ref + E[A (u - v) | x_t] / beta``, which is ``v_ref +
Cov(A, u | x_t) / beta`` where v is the exact velocity of its own samples: for a linear reward on Gaussian data the
velocity of the law tilted with beta (with a std-normalised advantage, beta times the std).

It is adjoint matching with the gradient of the value, ``E[r grad_{x_t} log p(x_0 | x_t)]``, taken from samples by
``grad_{x_t} log p(x_0 | x_t) = (eps_hat - eps) / sigma = alpha / (sigma W) (v - u)``, and without the path-cost term.

The gradient is that of ``c/2 |v - v_ref - a (u - v_ref)|^2`` with ``c = 1 + R`` and ``a = R / (1 + R)``: DiffusionNFT's
around the reference instead of an old policy, with a curvature that depends on the reward. It needs ``R > -1`` to pull
and not push; larger beta or a clipped advantage see to that.

Reference: Bergmeister et al. 2026, arXiv:2605.10759 (formula as re-told and derived again here).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.forward.base import ForwardMethod
from girsanov.methods.forward.draws import Draw, ForwardBatch
from girsanov.methods.forward.errors import mean_square
from girsanov.predictions import scale


@dataclass(frozen=True, kw_only=True)
class RAM(ForwardMethod):
    """Reinforce adjoint matching.

    Attributes:
        beta: weight of the KL that its fixed point solves for (in units of the advantage).
    """

    beta: float = 5.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise GirsanovError(f"beta weighs a KL and must be positive, not {self.beta}")

    @property
    def frozen(self) -> tuple[str, ...]:
        """The reference."""
        return ("reference",)

    def loss(
        self, v: Tensor, frozen: Mapping[str, Tensor], draw: Draw, batch: ForwardBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``|v - sg(v_ref + R (u - v))|^2 / d``."""
        pull = (draw.target - v.detach()) * scale(batch.advantage / self.beta, v)
        drift = mean_square(v.detach() - frozen["reference"]).mean()
        return mean_square(v - frozen["reference"] - pull), {"drift": drift}
