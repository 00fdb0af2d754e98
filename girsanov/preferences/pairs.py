r"""Losses of pairs: one composition, of which most of the offline family are points.

.. math:: L = \sum_{i < j} w_{ij}\, \ell_{labels}\big( f, h_{ij} \big) + \sum terms, \qquad
    h_{ij} = \phi(x) \big( s(y_i) - s(y_j) - m_{ij} \big)

with the items of a prompt in the order of preference: scores ``s`` (beta, reference, length, divergence), margins
``m``, sharpness ``phi``, link ``f``, treatment of labels, weights ``w``. K = 2 is one pair. DPO is the point where all
parts are at their default. Where a model can meet the odds of all pairs and f is the logistic link, the minimum has

.. math:: \phi \, (s_i - s_j - m_{ij}) = r_i - r_j

for Bradley-Terry labels of a reward r: the closed forms that the tests compare with.

*AOT* compares the sorted columns of a batch instead of rows (the law of the winners' scores must dominate that of the
losers'): paired, the score gaps of the policy with those of the reference; unpaired, the winners' scores with the
losers'.

*Several negatives in one logit* (POVID): ``h = a s(y_w) - sum_k b_k s(y_k)``. The survey's Eq. 65 leaves open where the
bracket closes; the reading here, ``a s_w - [b_1 s_1 + b_2 s_2]``, is the only one in which the gradient pushes every
negative down (with the other, ``a s_w - b_1 s_1 + b_2 s_2``, the noised image's answer is pushed *up*). Per-prompt
constants cancel when ``a = sum b``.

References: Rafailov et al. 2023, arXiv:2305.18290, Eq. 7; Zhao et al. 2024, arXiv:2410.04203 (the composition); Melnyk
et al. 2024, arXiv:2406.05882 (AOT); Zhou et al. 2024, arXiv:2402.11411 (POVID).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.preferences.base import Loss
from girsanov.preferences.labels import Clean, Labels
from girsanov.preferences.links import Link, Logistic
from girsanov.preferences.margins import Margin
from girsanov.preferences.pairing import Pairing
from girsanov.preferences.records import Compared
from girsanov.preferences.scores import Score
from girsanov.preferences.terms import Term
from girsanov.preferences.weights import Equal, Sharpness, Uniform, Weight


@dataclass(frozen=True, kw_only=True)
class PairLoss(Loss):
    """The composition.

    Attributes:
        score: log-probs to scores.
        margins: what a gap must exceed, added up.
        sharpness: factor of a prompt's logits.
        link: f.
        labels: how noise in the labels is treated.
        weight: how much each pair counts.
        terms: what is added for the best item.
    """

    score: Score = Score()
    margins: tuple[Margin, ...] = ()
    sharpness: Sharpness = Equal()
    link: Link = Logistic()
    labels: Labels = Clean()
    weight: Weight = Uniform()
    terms: tuple[Term, ...] = ()

    def pairing(self, batch: Compared) -> Pairing:
        """The pairs of a batch with their scores."""
        return Pairing.of(batch, self.score(batch), self.score.beta)

    def logits(self, pairing: Pairing) -> Tensor:
        """h, [B, P]."""
        gap = pairing.gap
        for margin in self.margins:
            gap = gap - margin(pairing)
        return self.sharpness(pairing) * gap

    def rows(self, batch: Compared) -> Tensor:
        """The pairs' losses added up, and the terms."""
        pairing = self.pairing(batch)
        loss = self.weight(pairing) * self.labels(self.link, self.logits(pairing), pairing)
        total = torch.where(pairing.there, loss, torch.zeros_like(loss)).sum(1)
        for term in self.terms:
            total = total + term(batch)
        return total


@dataclass(frozen=True, kw_only=True)
class SortedGaps(Loss):
    """AOT, paired: ``f(beta [sort(gap) - sort(ref gap)])`` over the rows of the batch (K = 2)."""

    beta: float = 0.1
    link: Link = Logistic()

    def rows(self, batch: Compared) -> Tensor:
        """By quantile, not by prompt."""
        _two(batch)
        gap, base = (side[:, 0] - side[:, 1] for side in (batch.logp, batch.need("ref")))
        return self.link(self.beta * (gap.sort().values - base.sort().values))


@dataclass(frozen=True, kw_only=True)
class SortedScores(Loss):
    """AOT, unpaired: ``f(sort(s_w) - sort(s_l))`` over the rows of the batch (K = 2)."""

    score: Score = Score()
    link: Link = Logistic()

    def rows(self, batch: Compared) -> Tensor:
        """By quantile, not by prompt."""
        _two(batch)
        s = self.score(batch).sort(0).values
        return self.link(s[:, 0] - s[:, 1])


@dataclass(frozen=True, kw_only=True)
class ManyNegatives(Loss):
    """``f(a s(y_0) - sum_k b_k s(y_k))``: the first item against all others at once.

    Attributes:
        positive: a.
        negatives: b, one for each of the other items; None is equal shares of a for those that are there, so that a
            constant of the prompt cancels however many there are.
    """

    score: Score = Score()
    positive: float = 1.0
    negatives: tuple[float, ...] | None = (0.5, 0.5)
    link: Link = Logistic()

    def rows(self, batch: Compared) -> Tensor:
        """One logit a prompt; negatives that are not there add nothing."""
        s = torch.where(batch.there, self.score(batch), torch.zeros_like(batch.logp))
        if self.negatives is None:
            there = batch.there[:, 1:]
            if not there.shape[1] or not bool(there.any(1).all()):
                raise GirsanovError("a loss of one item against others needs one other at least, in every row")
            return self.link(self.positive * (s[:, 0] - s[:, 1:].sum(1) / there.sum(1)))
        if batch.items != 1 + len(self.negatives):
            raise GirsanovError(
                f"{len(self.negatives)} weights of negatives and {batch.items - 1} negatives: match them"
            )
        h = self.positive * s[:, 0]
        for k, b in enumerate(self.negatives, 1):
            h = h - b * s[:, k]
        return self.link(h)


def _two(batch: Compared) -> None:
    if batch.items != 2:
        raise GirsanovError(f"sorted losses compare two columns, chosen and rejected, not {batch.items} items")
