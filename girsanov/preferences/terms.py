r"""Terms that stand beside a loss of comparisons: imitation of the best item, a KL.

===========  ==========================================  ==================================================
term         value                                       method
===========  ==========================================  ==================================================
imitation    ``-w log pi(y) / |y|^l``, y the best item   CPO, ORPO (l = 1), SLiC, RRHF, PRO
KL           ``w K(y)``, ``K = sum_t KL(ref || pi)``     SuperHF
===========  ==========================================  ==================================================

``y`` is the batch's ``target`` where there is one (SLiC-HF imitates an answer that need not be the winner).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from girsanov.preferences.records import Compared


class Term(ABC):
    """A part of a loss that looks at one item."""

    @abstractmethod
    def __call__(self, batch: Compared) -> Tensor:
        """One number a prompt, [B]."""


@dataclass(frozen=True)
class Imitation(Term):
    """``-weight log pi(y) / |y|^length``."""

    weight: float = 1.0
    length: float = 0.0

    def __call__(self, batch: Compared) -> Tensor:
        """Minus the log-prob of the target, or of the first item."""
        logp = batch.logp[:, 0] if batch.target is None else batch.target
        if self.length:
            logp = logp / batch.need("length")[:, 0].to(logp.dtype) ** self.length
        return -self.weight * logp


@dataclass(frozen=True)
class Drift(Term):
    """``weight`` times the sequence KL of the first item."""

    weight: float = 0.1

    def __call__(self, batch: Compared) -> Tensor:
        """``weight K(y)``."""
        return self.weight * batch.need("divergence")[:, 0]


TERMS: dict[str, type[Term]] = {"imitation": Imitation, "drift": Drift}
"""Every term by name."""
