r"""Margins: by how much a pair's score gap must exceed 0, ``h = phi (s_w - s_l - sum of margins)``.

==================  =============================================  =================================================
margin              value                                          what it is for
==================  =============================================  =================================================
fixed               ``gamma``                                      SimPO's target gap
score gap           ``alpha (r_w - r_l)``                          ODPO: a bigger lead asks for a bigger gap
log score gap       ``alpha log(r_w - r_l)``                       ODPO as published
length              ``-alpha (|y_w| - |y_l|)``                     R-DPO: takes length out of the reward
chosen drop         ``lam max(0, -s_w)``                           DPOP: the winner must not lose probability
sequence KL         ``alpha beta (K_l - K_w)``                     TDPO: the token-level reading of the same problem
==================  =============================================  =================================================

*The sign of the length margin.* R-DPO's problem has the reward ``r - alpha |y|``; its optimum satisfies
``r - alpha |y| = beta D + const``, so the Bradley-Terry logit of r is ``beta (D_w - D_l) + alpha (|y_w| - |y_l|)``. The
survey (Eq. 56, Table 9) prints a minus; from its own Eq. 55 the sign is plus. With it, a pair whose winner is longer
has a larger logit at the same policy, hence a smaller gradient: length explains part of the preference.

*TDPO.* With ``K = sum_t KL(pi_ref || pi)`` along an answer, the token-level problem has the logit ``h - beta (K_l -
K_w)`` (TDPO 1). TDPO 2 scales it by alpha and stops the gradient of ``K_w``, so that the loser's KL alone is driven.

*DPOP.* ``beta max(0, log pi_ref(y_w) / pi(y_w)) = max(0, -s_w)`` for the plain score.

References: Meng et al. 2024, arXiv:2405.14734, Eq. 6; Amini et al. 2024, arXiv:2402.10571, Eq. 5; Park et al. 2024,
arXiv:2403.19159, Eq. 9; Pal et al. 2024, arXiv:2402.13228, Eq. 3; Zeng et al. 2024, arXiv:2404.11999, Eqs. 15 and 17.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.preferences.pairing import Pairing


class Margin(ABC):
    """A gap that is asked for."""

    @abstractmethod
    def __call__(self, pairing: Pairing) -> Tensor:
        """The margin of every pair, [B, P] or a shape that broadcasts to it."""


@dataclass(frozen=True)
class Fixed(Margin):
    """``gamma``."""

    gamma: float = 0.5

    def __call__(self, pairing: Pairing) -> Tensor:
        """``gamma``."""
        return torch.full((), self.gamma, dtype=pairing.s.dtype, device=pairing.s.device)


@dataclass(frozen=True)
class ScoreGap(Margin):
    """``alpha (r_w - r_l)``."""

    alpha: float = 1.0

    def __call__(self, pairing: Pairing) -> Tensor:
        """``alpha (r_w - r_l)``."""
        return self.alpha * pairing.score_gap


@dataclass(frozen=True)
class LogScoreGap(Margin):
    """``alpha log(r_w - r_l)``; gaps are held above ``least``, so that a tie is a large but finite offset."""

    alpha: float = 1.0
    least: float = 1e-3

    def __call__(self, pairing: Pairing) -> Tensor:
        """``alpha log max(least, r_w - r_l)``."""
        return self.alpha * pairing.score_gap.clamp_min(self.least).log()


@dataclass(frozen=True)
class LengthGap(Margin):
    """``-alpha (|y_w| - |y_l|)``."""

    alpha: float = 0.01

    def __call__(self, pairing: Pairing) -> Tensor:
        """``-alpha (|y_w| - |y_l|)``."""
        better, worse = pairing.sides("length")
        return -self.alpha * (better - worse).to(pairing.s.dtype)


@dataclass(frozen=True)
class ChosenDrop(Margin):
    """``lam max(0, -s_w)``."""

    lam: float = 5.0

    def __call__(self, pairing: Pairing) -> Tensor:
        """``lam max(0, -s_w)``."""
        return self.lam * (-pairing.s[:, pairing.better]).clamp_min(0)


@dataclass(frozen=True)
class SequenceKL(Margin):
    """``alpha beta (K_l - K_w)`` (TDPO 1 with alpha = 1)."""

    alpha: float = 1.0

    def __call__(self, pairing: Pairing) -> Tensor:
        """``alpha beta (K_l - K_w)``."""
        better, worse = pairing.sides("divergence")
        return self.alpha * pairing.beta * (worse - better)


@dataclass(frozen=True)
class LoserKL(Margin):
    """``alpha beta (K_l - sg K_w)`` (TDPO 2): the winner's KL has no gradient."""

    alpha: float = 0.5

    def __call__(self, pairing: Pairing) -> Tensor:
        """``alpha beta (K_l - sg K_w)``."""
        better, worse = pairing.sides("divergence")
        return self.alpha * pairing.beta * (worse - better.detach())


MARGINS: dict[str, type[Margin]] = {
    "fixed": Fixed,
    "score-gap": ScoreGap,
    "log-score-gap": LogScoreGap,
    "length": LengthGap,
    "chosen-drop": ChosenDrop,
    "sequence-kl": SequenceKL,
    "loser-kl": LoserKL,
}
"""Every margin by name."""
