r"""Links: what a loss does with the logit h of a pair, ``f(h)``; h > 0 is the right order.

==============  ==========================================  ===========  ============  ======================
link            f(h)                                        f'(0)        f''(0)        best h, P = P(w beats l)
==============  ==========================================  ===========  ============  ======================
logistic        ``-log sigma(h)``                           -1/2         1/4           ``logit P``
square          ``(h - c)^2``                               -2c          2             ``c (2P - 1)``
hinge           ``max(0, c - h)``                           -1           0             ``+-c``
squared hinge   ``max(0, c - h)^2``                         -2c          2             ``c (2P - 1)``
exponential     ``exp(-h)``                                 -1           1             ``logit(P) / 2``
exo             ``KL((sigma(h), sigma(-h)) || (1-e, e))``   ``-l / 4``   1/4           ``(2P - 1) l``
==============  ==========================================  ===========  ============  ======================

with ``l = logit(1 - e)``. The last column minimises ``P f(h) + (1 - P) f(-h)``. To second order in a small h a convex f
is ``f(0) + f'(0) h + f''(0) h^2 / 2``: the members of the family (GPO) differ in how strongly they hold h at 0. EXO
with ``q = sigma(h)`` has ``f' = q' (h - l)``, so ``q' (-h) = q' (h)`` gives its best h at once.

References: Tang et al. 2024, arXiv:2402.05749 (GPO); Rafailov et al. 2023, arXiv:2305.18290 (logistic); Azar et al.
2023, arXiv:2310.12036 (square); Zhao et al. 2023, arXiv:2305.10425 (hinge); Ji et al. 2024, arXiv:2402.00856 (exo).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from girsanov.errors import GirsanovError

LIMIT = 30.0
"""Exponents stay within +-30, so that no loss and no gradient is infinite."""


class Link(ABC):
    """A decreasing function of the logit near 0."""

    @abstractmethod
    def __call__(self, h: Tensor) -> Tensor:
        """``f(h)``, elementwise."""


@dataclass(frozen=True)
class Logistic(Link):
    """``-log sigma(h)``: the likelihood of Bradley and Terry."""

    def __call__(self, h: Tensor) -> Tensor:
        """``-log sigma(h)``."""
        return -logsigmoid(h)


@dataclass(frozen=True)
class Square(Link):
    """``(h - target)^2``: a finite logit even where the preference is certain."""

    target: float = 0.5

    def __call__(self, h: Tensor) -> Tensor:
        """``(h - target)^2``."""
        return (h - self.target).square()


@dataclass(frozen=True)
class Hinge(Link):
    """``max(0, delta - h)``."""

    delta: float = 1.0

    def __call__(self, h: Tensor) -> Tensor:
        """``max(0, delta - h)``."""
        return (self.delta - h).clamp_min(0)


@dataclass(frozen=True)
class SquaredHinge(Link):
    """``max(0, delta - h)^2``."""

    delta: float = 1.0

    def __call__(self, h: Tensor) -> Tensor:
        """``max(0, delta - h)^2``."""
        return (self.delta - h).clamp_min(0).square()


@dataclass(frozen=True)
class Exponential(Link):
    """``exp(-h)``, linear below h = -30."""

    def __call__(self, h: Tensor) -> Tensor:
        """``exp(-h)``, its tangent below -30."""
        steep = torch.exp(torch.tensor(LIMIT, dtype=h.dtype, device=h.device))
        inside = (-h.clamp(min=-LIMIT)).exp()
        return torch.where(h < -LIMIT, steep * (1 - (h + LIMIT)), inside)


@dataclass(frozen=True)
class Exo(Link):
    """``KL(q || p)`` of the model's ``q = (sigma(h), sigma(-h))`` from the label's ``p = (1 - eps, eps)``.

    The other links minimise ``KL(p || q)`` in this sense (logistic, with eps = 0): EXO has the reverse divergence.
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.eps < 0.5:
            raise GirsanovError(f"the reverse KL needs a label noise between 0 and 0.5, not {self.eps}")

    def __call__(self, h: Tensor) -> Tensor:
        """``sigma(h) [log sigma(h) - log(1-eps)] + sigma(-h) [log sigma(-h) - log eps]``."""
        right = torch.log1p(torch.tensor(-self.eps, dtype=h.dtype, device=h.device))
        wrong = torch.log(torch.tensor(self.eps, dtype=h.dtype, device=h.device))
        return torch.sigmoid(h) * (logsigmoid(h) - right) + torch.sigmoid(-h) * (logsigmoid(-h) - wrong)


LINKS: dict[str, type[Link]] = {
    "logistic": Logistic,
    "square": Square,
    "hinge": Hinge,
    "squared-hinge": SquaredHinge,
    "exponential": Exponential,
    "exo": Exo,
}
"""Every link by name."""
