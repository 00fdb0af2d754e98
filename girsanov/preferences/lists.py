r"""Losses of ranked or scored lists of K items.

With scores s of the policy and, where grades are read, ``p = softmax(score / T)`` of the annotator:

==============  ===================================================================================  ===============
loss            formula                                                                              K = 2
==============  ===================================================================================  ===============
Plackett-Luce   ``-sum_k log [e^{s_k} / sum_{i >= k} e^{s_i}]``                                      DPO
PRO             ``-sum_k log [e^{s_k / T_kk} / sum_{i >= k} e^{s_i / T_ki}]``                        see below
softmax         ``-sum_i p_i log softmax(s)_i`` (InfoNCA; forward KL up to a constant)               DPO, hard p
EXO             ``sum_i q_i (log q_i - log p_i)``, ``q = softmax(s)`` (reverse KL)                   ``links.Exo``
NCA             ``-sum_i [p_i log sigma(s_i) + log sigma(-s_i) / K]``                                below
==============  ===================================================================================  ===============

*PRO.* ``T_ki = 1 / (r_k - r_i)`` and ``T_kk = min_i T_ki``: the score of item i is multiplied by its reward gap to k,
that of k by the widest gap, which is what is computed (no division, so equal rewards are harmless: their factor is 0).
For two items it is ``-log sigma((r_1 - r_2)(s_1 - s_2))``.

*Optima.* For items that are the whole support, softmax and EXO are least where ``softmax(s) = p``: with the plain score
``pi ~ pi_ref exp(score / (T beta))``. NCA weights each item by itself: ``sigma(s_i) = p_i / (p_i + 1/K)``, so ``s_i =
log(K p_i)``: absolute, not up to a constant, hence its resistance to falling likelihoods. A pair with a hard label
(``p = (1, 0)``) gives ``-log sigma(s_w) - [log sigma(-s_w) + log sigma(-s_l)] / 2``. Plackett-Luce data of a reward r
gives ``s = r`` up to a constant.

References: Rafailov et al. 2023, arXiv:2305.18290, appendix A.3; Song et al. 2023, arXiv:2306.17492 (PRO); Chen et al.
2024, arXiv:2402.05369 (NCA, InfoNCA); Ji et al. 2024, arXiv:2402.00856, Eq. 12 (EXO).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from girsanov.preferences.base import Loss
from girsanov.preferences.records import Compared
from girsanov.preferences.scores import Score
from girsanov.preferences.terms import Term

ABSENT = -1e9
"""The score of an item that is not there: its exponential is 0 and its gradient too."""

LARGE = 30.0
"""Minus the log-probability of what a hard label excludes."""


def _present(values: Tensor, batch: Compared) -> Tensor:
    return values if batch.valid is None else values.masked_fill(~batch.there, ABSENT)


@dataclass(frozen=True, kw_only=True)
class PlackettLuce(Loss):
    """The likelihood of a ranking, best first."""

    score: Score = Score()
    terms: tuple[Term, ...] = ()

    def rows(self, batch: Compared) -> Tensor:
        """``sum_k logsumexp_{i >= k} s_i - s_k``."""
        s = _present(self.score(batch), batch)
        tail = s.flip(1).logcumsumexp(1).flip(1)
        loss = torch.where(batch.there, tail - s, torch.zeros_like(s)).sum(1)
        for term in self.terms:
            loss = loss + term(batch)
        return loss


@dataclass(frozen=True, kw_only=True)
class PRO(Loss):
    """Preference ranking optimisation: a ranking whose items are weighted by reward gaps."""

    score: Score = Score(beta=1.0, reference=0.0, length=1.0)
    terms: tuple[Term, ...] = ()

    def rows(self, batch: Compared) -> Tensor:
        """The sum over k of the softmax losses of the items from k on, and the terms."""
        s, r, there = self.score(batch), batch.need("score"), batch.there
        loss = torch.zeros_like(s[:, 0])
        for k in range(batch.items - 1):
            gap = (r[:, k : k + 1] - r[:, k + 1 :]).clamp_min(0).masked_fill(~there[:, k + 1 :], 0.0)
            scaled = torch.cat([s[:, k : k + 1] * gap.amax(1, keepdim=True), s[:, k + 1 :] * gap], 1)
            scaled = scaled.masked_fill(~there[:, k:], ABSENT)
            part = scaled.logsumexp(1) - scaled[:, 0]
            loss = loss + torch.where(there[:, k] & there[:, k + 1 :].any(1), part, torch.zeros_like(part))
        for term in self.terms:
            loss = loss + term(batch)
        return loss


def grades(batch: Compared, temperature: float) -> Tensor:
    """``log p``, the annotator's softmax, [B, K]; without scores all on the first item (as far as float32 goes)."""
    if batch.score is None:
        log_p = torch.full_like(batch.logp, -LARGE)
        log_p[:, 0] = 0.0
        return log_p
    return _present(batch.score.to(batch.logp.dtype) / temperature, batch).log_softmax(1)


@dataclass(frozen=True, kw_only=True)
class SoftmaxLoss(Loss):
    """Cross entropy of the policy's softmax with the annotator's (InfoNCA)."""

    score: Score = Score()
    temperature: float = 1.0

    def rows(self, batch: Compared) -> Tensor:
        """``-sum_i p_i log softmax(s)_i``."""
        log_q = _present(self.score(batch), batch).log_softmax(1)
        return -(grades(batch, self.temperature).exp() * log_q).sum(1)


@dataclass(frozen=True, kw_only=True)
class ExoList(Loss):
    """``KL(q || p)`` of the policy's softmax from the annotator's (EXO with rewards)."""

    score: Score = Score()
    temperature: float = 1.0

    def rows(self, batch: Compared) -> Tensor:
        """``sum_i q_i (log q_i - log p_i)``."""
        log_q, log_p = _present(self.score(batch), batch).log_softmax(1), grades(batch, self.temperature)
        return torch.where(batch.there, log_q.exp() * (log_q - log_p), torch.zeros_like(log_q)).sum(1)


@dataclass(frozen=True, kw_only=True)
class NCA(Loss):
    """Noise contrastive alignment: every item by itself."""

    score: Score = Score()
    temperature: float = 1.0

    def rows(self, batch: Compared) -> Tensor:
        """``-sum_i [p_i log sigma(s_i) + log sigma(-s_i) / K]``."""
        s, there = self.score(batch), batch.there
        p = grades(batch, self.temperature).exp()
        share = there.to(s.dtype) / there.sum(1, keepdim=True)
        loss = -(p * logsigmoid(s) + share * logsigmoid(-s))
        return torch.where(there, loss, torch.zeros_like(loss)).sum(1)
