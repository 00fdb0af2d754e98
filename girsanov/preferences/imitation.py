r"""Imitation of selected samples: RAFT, ReST, best-of-n, SuperHF differ in what is selected (``selection.py``).

.. math:: L = - \frac{1}{n} \sum_{k\ selected} \frac{\log\pi(y_k)}{|y_k|^\ell} + terms

The minimum over all policies is the law of the selected samples: for the best of n independent draws of ``pi_ref`` with
distribution function F of the reward (no ties), ``pi(y) = F(y)^n - F(y^-)^n``; for ReST ``pi_ref`` given ``r >= tau``.
With a term ``w KL(pi_ref || pi)`` (SuperHF) it is the mixture ``(q + w pi_ref) / (1 + w)``, q the law of the selected.

References: Dong et al. 2023, arXiv:2304.06767 (RAFT); Gulcehre et al. 2023, arXiv:2308.08998 (ReST); Mukobi et al.
2023, arXiv:2310.16763 (SuperHF).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.preferences.base import Loss
from girsanov.preferences.records import Compared
from girsanov.preferences.scores import Score
from girsanov.preferences.terms import Term


@dataclass(frozen=True, kw_only=True)
class ImitationLoss(Loss):
    """The mean negative log-prob of the items that are there; a prompt without any costs nothing.

    Attributes:
        length: exponent of the length: 0 sums over tokens, 1 takes their mean.
        terms: what is added for the best item.
    """

    length: float = 0.0
    terms: tuple[Term, ...] = ()

    def rows(self, batch: Compared) -> Tensor:
        """The mean over the items of a prompt."""
        logp = Score(beta=1.0, reference=0.0, length=self.length).log_ratio(batch)
        there = batch.there
        loss = -torch.where(there, logp, torch.zeros_like(logp)).sum(1) / there.sum(1).clamp_min(1)
        for term in self.terms:
            loss = loss + torch.where(there[:, 0], term(batch), torch.zeros_like(loss))
        return loss
