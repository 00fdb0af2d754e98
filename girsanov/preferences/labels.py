r"""Label noise: how a loss reads a label that may be wrong.

With ``f`` the link and a label that is flipped with probability e,

===========  ==========================================  ===========================================================
labels       loss                                        what it does
===========  ==========================================  ===========================================================
clean        ``f(h)``                                    trusts the label
smoothed     ``(1 - e) f(h) + e f(-h)``                  models the noise: logistic, the best h is
                                                         ``logit(e + (1 - 2e) P)``
debiased     ``[(1 - e) f(h) - e f(-h)] / (1 - 2e)``     removes it: the mean over flips is the clean loss
graded       ``p f(h) + (1 - p) f(-h)``                  ``p = sigma(score gap / T)`` instead of a hard label
===========  ==========================================  ===========================================================

The mean of the debiased loss over flips is ``[(1-e)^2 - e^2] f(h) / (1 - 2e) = f(h)``: unbiased for every f. It is not
bounded below: its second part rewards a confident mistake.

References: Mitchell 2023 (cDPO, a note on noisy preferences); Chowdhury et al. 2024, arXiv:2403.00409, Eq. 12 (rDPO).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.preferences.links import Link
from girsanov.preferences.pairing import Pairing


class Labels(ABC):
    """What a label is taken for."""

    @abstractmethod
    def __call__(self, link: Link, h: Tensor, pairing: Pairing) -> Tensor:
        """The loss of logits h [B, P]."""


@dataclass(frozen=True)
class Clean(Labels):
    """The label is right."""

    def __call__(self, link: Link, h: Tensor, pairing: Pairing) -> Tensor:
        """``f(h)``."""
        return link(h)


@dataclass(frozen=True)
class Smoothed(Labels):
    """The label is flipped with probability eps, and the loss models it (cDPO)."""

    eps: float = 0.1

    def __post_init__(self) -> None:
        _check(self.eps)

    def __call__(self, link: Link, h: Tensor, pairing: Pairing) -> Tensor:
        """``(1 - eps) f(h) + eps f(-h)``."""
        return (1 - self.eps) * link(h) + self.eps * link(-h)


@dataclass(frozen=True)
class Debiased(Labels):
    """The label is flipped with probability eps, and the loss removes what that does (rDPO)."""

    eps: float = 0.1

    def __post_init__(self) -> None:
        _check(self.eps)

    def __call__(self, link: Link, h: Tensor, pairing: Pairing) -> Tensor:
        """``[(1 - eps) f(h) - eps f(-h)] / (1 - 2 eps)``."""
        return ((1 - self.eps) * link(h) - self.eps * link(-h)) / (1 - 2 * self.eps)


@dataclass(frozen=True)
class Graded(Labels):
    """The annotator's probability, from the scores: Bradley-Terry at a temperature."""

    temperature: float = 1.0

    def __call__(self, link: Link, h: Tensor, pairing: Pairing) -> Tensor:
        """``p f(h) + (1 - p) f(-h)``, ``p = sigma(gap / temperature)``."""
        p = torch.sigmoid(pairing.score_gap / self.temperature).to(h.dtype)
        return p * link(h) + (1 - p) * link(-h)


def _check(eps: float) -> None:
    if not 0 <= eps < 0.5:
        raise GirsanovError(f"a share of wrong labels must lie in [0, 0.5), not {eps}")


LABELS: dict[str, type[Labels]] = {"clean": Clean, "smoothed": Smoothed, "debiased": Debiased, "graded": Graded}
"""Every treatment of labels by name."""
