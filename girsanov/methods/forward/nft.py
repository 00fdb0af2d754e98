r"""DiffusionNFT: good samples pull the velocity, bad ones push it, through one implicit pair of policies.

With the optimality ``q = 1/2 + A / (2 Z)`` of a sample (advantage A, clipped to +-Z) and, around the old policy,

.. math:: v_+ = (1 - b)\, v_{old} + b\, v, \qquad v_- = (1 + b)\, v_{old} - b\, v

.. math:: L = \frac{Z}{b} E\big[ q\, e(v_+) + (1 - q)\, e(v_-) \big] + \kappa\, \| v - v_{ref} \|^2 / d

e is an error against the target u (``errors.py``): ``VelocityError`` is the paper's formula, ``SelfNormalisedX0`` its
code. With the velocity error and kappa = 0 the minimiser at one x_t is

.. math:: v^* = v_{old} + \tfrac2b E[q (u - v_{old})] - \tfrac1b E[u - v_{old}]

whose last term vanishes where the old policy is the exact velocity of its own samples. The factor ``Z / b`` (the
code's) makes the gradient at ``v = v_old`` equal to that of ``A |v - u|^2``, whatever Z and b. So once the old policy
has caught up, ``v = v_ref + E[A (u - v) | x_t] / kappa``: for a linear reward with a centred, unscaled advantage on
Gaussian data this is the velocity of the law tilted with ``beta = kappa``. Dividing the advantage by the group's std
multiplies that beta by it.

Everything stays in the dtype of the samples (float32), the published weight promotes its loss to float64.
``old_gap`` is the distance of v from v_old. It is 0 in the first update of an iteration that began with a decay of 0;
if it is 0 throughout, the old policy is not lagging and the update is no more than a weighted regression.

Reference: Zheng et al. 2025, arXiv:2509.16117, theorem 3.2 and its code (published: ``Clipped(GlobalStd(), 5)``, Z = 5,
b = 1, or .1 for several rewards, kappa = 1e-4, grid times, one draw a step).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.forward.draws import Draw, ForwardBatch
from girsanov.methods.forward.errors import ErrorNorm, SelfNormalisedX0
from girsanov.methods.forward.old import OLD, ComparesWithOld


@dataclass(frozen=True, kw_only=True)
class DiffusionNFT(ComparesWithOld):
    """Negative-aware fine-tuning.

    Attributes:
        b: distance of the implicit policies from the old one.
        limit: Z, the advantage at which a sample counts as entirely good.
        error: what is regressed.
    """

    b: float = 1.0
    limit: float = 5.0
    kappa: float = 1e-4
    error: ErrorNorm = SelfNormalisedX0()

    def __post_init__(self) -> None:
        if not (self.b > 0 and self.limit > 0 and self.kappa >= 0):
            raise GirsanovError(
                f"NFT needs b > 0, limit > 0 and kappa >= 0, not {self.b}, {self.limit} and {self.kappa}"
            )

    @property
    def behaviour(self) -> str:
        """The old policy."""
        return OLD

    def loss(
        self, v: Tensor, frozen: Mapping[str, Tensor], draw: Draw, batch: ForwardBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The pair of errors, weighted by the optimality, and the distance from the reference."""
        old = frozen[OLD]
        step = self.b * (v - old)
        q = 0.5 + 0.5 * (batch.advantage / self.limit).clamp(-1, 1)
        pair = q * self.error(old + step, draw) + (1 - q) * self.error(old - step, draw)
        pull, metrics = self.pull(v, frozen)
        return self.limit / self.b * pair + pull, metrics | {"signal": (2 * q - 1).abs().mean()}
