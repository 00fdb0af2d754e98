r"""Losses of reward models: the preference losses with the score itself in the place of the log-ratio.

A preference loss reads scores ``s = beta (log pi - log pi_ref)``; here ``s = r`` (``Score(1, reference=0)``), so every
link, margin and treatment of labels of ``girsanov/preferences`` is there. With r* the annotator's reward:

==============  ==========================================  ========================================================
loss            formula                                     least at (labels of r* at odds ``sigma(r*_w - r*_l)``)
==============  ==========================================  ========================================================
bradley-terry   ``-log sigma(r_w - r_l)``                   ``r = r* + c``
margin          ``-log sigma(r_w - r_l - a (g_w - g_l))``   ``r = r* + a g + c``, g the given scores (signed gaps)
fixed-margin    ``-log sigma(r_w - r_l - m)``               apart by at least m where labels are certain
noisy           ``-(1-e) log sigma(h) - e log sigma(-h)``   ``sigma(h)`` is the share of labels, mixed with e: smoothed
plackett-luce   ``-sum_k log softmax(r_k, ..., r_K)_k``     ``r = r* + c``, from rankings of K
choice          ``-log softmax(r)_1``                       ``r = r* + c``, from the best of K alone
regression      ``sum_k (r_k - g_k)^2``                     ``r = E[g]``: no constant is free
==============  ==========================================  ========================================================

Bradley-Terry leaves the constant free; ``RewardModelling.centre`` pins it down.

References: Bradley & Terry 1952, doi:10.2307/2334029; Plackett 1975, doi:10.2307/2346567; Ouyang et al. 2022,
arXiv:2203.02155, Eq. 1; Touvron et al. 2023, arXiv:2307.09288, Eq. 2 (margin).
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.preferences.base import Loss
from girsanov.preferences.labels import Smoothed
from girsanov.preferences.lists import ABSENT, PlackettLuce
from girsanov.preferences.margins import Fixed, ScoreGap
from girsanov.preferences.pairs import PairLoss
from girsanov.preferences.records import Compared
from girsanov.preferences.scores import Score
from girsanov.settings import unknown

PLAIN = Score(beta=1.0, reference=0.0)


@dataclass(frozen=True, kw_only=True)
class Choice(Loss):
    """The best of K: ``-log softmax(r)_1``."""

    def rows(self, batch: Compared) -> Tensor:
        """``logsumexp r - r_1``."""
        s = PLAIN(batch).masked_fill(~batch.there, ABSENT)
        return s.logsumexp(1) - s[:, 0]


@dataclass(frozen=True, kw_only=True)
class Regression(Loss):
    """``sum_k (r_k - g_k)^2`` over the items that are there and have a score (NaN is none)."""

    def rows(self, batch: Compared) -> Tensor:
        """Squared errors added up."""
        s, given = PLAIN(batch), batch.need("score")
        known = batch.there & given.isfinite()
        return torch.where(known, s - torch.where(known, given, s.detach()), torch.zeros_like(s)).square().sum(1)


def bradley_terry() -> Loss:
    """Pairs, all of a ranking's if there are more than two items."""
    return PairLoss(score=PLAIN)


def margin(alpha: float = 1.0) -> Loss:
    """Pairs whose gap of given scores is asked for on top."""
    return PairLoss(score=PLAIN, margins=(ScoreGap(alpha),))


def fixed_margin(margin: float = 1.0) -> Loss:
    """Pairs that must be apart."""
    return PairLoss(score=PLAIN, margins=(Fixed(margin),))


def noisy(eps: float = 0.1) -> Loss:
    """Pairs whose labels are wrong with probability eps (smoothed)."""
    return PairLoss(score=PLAIN, labels=Smoothed(eps))


def plackett_luce() -> Loss:
    """Rankings."""
    return PlackettLuce(score=PLAIN)


REWARD_LOSSES: Mapping[str, Callable[..., Loss]] = {
    "bradley-terry": bradley_terry,
    "margin": margin,
    "fixed-margin": fixed_margin,
    "noisy": noisy,
    "plackett-luce": plackett_luce,
    "choice": Choice,
    "regression": Regression,
}
"""Every loss of reward models by name."""


def reward_loss(spec: str) -> Loss:
    """The loss of a name, or of ``name:x`` with its number (``margin:0.5``).

    Raises GirsanovError on an unknown name, with the nearest one, or a number that does not fit.
    """
    name, given, value = spec.partition(":")
    if name not in REWARD_LOSSES:
        raise GirsanovError(f"{name!r} {unknown(name, REWARD_LOSSES, 'loss of reward models')}")
    if not given:
        return REWARD_LOSSES[name]()
    kinds = {p.kind for p in inspect.signature(REWARD_LOSSES[name]).parameters.values()}
    if inspect.Parameter.POSITIONAL_OR_KEYWORD not in kinds:
        raise GirsanovError(f"the loss {name} takes no number: write {name}")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise GirsanovError(f"{value!r} is no finite number: write {name}:0.1, say")
    return REWARD_LOSSES[name](number)
