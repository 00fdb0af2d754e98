r"""From sampled and scored items to compared ones: what happens between generation and the loss.

==============  =======================================================================  ============================
selection       items it keeps                                                           method
==============  =======================================================================  ============================
as given        all, in the order given                                                  offline
ranked          all, sorted by score                                                     list-wise
best and worst  two                                                                      online DPO
judged          two, swapped where a judge prefers the second                            OAIF, self-rewarding
top             the n best                                                               RAFT, best-of-n, SuperHF
above           those with ``score >= tau``                                              ReST (improve step)
accepted        each with probability ``exp((r - r_max) / beta)``, then ranked           RSO
==============  =======================================================================  ============================

*RSO.* Accepting a draw y of ``pi_ref`` with probability ``exp((r(y) - M) / beta)``, ``M >= r``, gives draws of ``pi_ref
exp(r / beta) / Z`` exactly. ``r_max`` here is the largest reward of the prompt's own draws, as published, which lies
below M: exact as the number of draws grows. One item is always accepted (the best has probability 1).

Uniform numbers are passed in: nothing here draws.

References: Liu et al. 2023, arXiv:2309.06657 (RSO); Guo et al. 2024, arXiv:2402.04792 (OAIF); Dong et al. 2023,
arXiv:2304.06767 (RAFT); Gulcehre et al. 2023, arXiv:2308.08998 (ReST).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.preferences.records import Compared


class Selection(ABC):
    """Sampled items to compared ones."""

    @abstractmethod
    def __call__(self, batch: Compared, u: Tensor | None = None) -> Compared:
        """The compared items.

        Args:
            batch: sampled items, in any order.
            u: uniform numbers on [0, 1), [B, K]; read by selections that are random.
        """


@dataclass(frozen=True)
class AsGiven(Selection):
    """All of them."""

    def __call__(self, batch: Compared, u: Tensor | None = None) -> Compared:
        """The same batch."""
        return batch


@dataclass(frozen=True)
class Ranked(Selection):
    """Sorted by score, best first; equal scores keep their order, items that are not there come last."""

    def __call__(self, batch: Compared, u: Tensor | None = None) -> Compared:
        """The sorted items."""
        return _sorted(batch, batch.there)


@dataclass(frozen=True)
class BestAndWorst(Selection):
    """The best and the worst of each prompt; the pair counts only if their scores differ."""

    def __call__(self, batch: Compared, u: Tensor | None = None) -> Compared:
        """K = 2; ``valid`` says which rows hold a pair (both columns, so that a tie teaches nothing)."""
        ranked = _sorted(batch, batch.there)
        last = ranked.there.sum(1, keepdim=True) - 1
        score = ranked.need("score")
        index = torch.cat([torch.zeros_like(last), last], 1)
        differ = score[:, :1] > score.gather(1, last)
        return ranked.columns(index, differ.expand(-1, 2))


@dataclass(frozen=True)
class Judged(Selection):
    """Two items, in the order that a judge gives them: the second wins with probability ``1 - wins[:, 0]``."""

    def __call__(self, batch: Compared, u: Tensor | None = None) -> Compared:
        """The winner first. Raises GirsanovError unless there are two items and uniform numbers."""
        if batch.items != 2:
            raise GirsanovError(f"a judge compares two items, not {batch.items}: take Ranked() for more")
        swap = (_needed(u)[:, 0] >= batch.need("wins")[:, 0]).long().unsqueeze(1)
        return batch.columns(torch.cat([swap, 1 - swap], 1))


@dataclass(frozen=True)
class Top(Selection):
    """The n best."""

    n: int = 1

    def __post_init__(self) -> None:
        if self.n < 1:
            raise GirsanovError(f"the best {self.n} of a group is nobody: give 1 or more")

    def __call__(self, batch: Compared, u: Tensor | None = None) -> Compared:
        """The first n of the ranking."""
        n = min(self.n, batch.items)
        return _first(_sorted(batch, batch.there), n)


@dataclass(frozen=True)
class Above(Selection):
    """Those with ``score >= tau``, best first. A prompt may keep none."""

    tau: float = 0.0

    def __call__(self, batch: Compared, u: Tensor | None = None) -> Compared:
        """All columns, ``valid`` where the score suffices."""
        return _sorted(batch, batch.there & (batch.need("score") >= self.tau))


@dataclass(frozen=True)
class Accepted(Selection):
    """Rejection sampling towards ``pi_ref exp(r / beta)``, then ranked."""

    beta: float = 0.5

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise GirsanovError(f"the temperature of rejection sampling must be positive, not {self.beta}")

    def __call__(self, batch: Compared, u: Tensor | None = None) -> Compared:
        """All columns, ``valid`` where accepted."""
        score = batch.need("score").masked_fill(~batch.there, -torch.inf)
        chance = torch.exp((score - score.max(1, keepdim=True).values) / self.beta)
        return _sorted(batch, batch.there & (_needed(u) < chance))


SELECTIONS: dict[str, type[Selection]] = {
    "as-given": AsGiven,
    "ranked": Ranked,
    "best-and-worst": BestAndWorst,
    "judged": Judged,
    "top": Top,
    "above": Above,
    "accepted": Accepted,
}
"""Every selection by name."""


def lowest(best: Tensor, share: float) -> Tensor:
    """OPTune: the prompts to generate anew, int64: the ``share`` of lowest reward ``best`` [B] of what they have."""
    if not 0 < share <= 1:
        raise GirsanovError(f"the share of prompts that are generated anew lies in (0, 1], not {share}")
    return best.argsort()[: max(1, round(share * len(best)))]


def _needed(u: Tensor | None) -> Tensor:
    if u is None:
        raise GirsanovError("this selection is random: pass uniform numbers u [B, K]")
    return u


def _sorted(batch: Compared, valid: Tensor) -> Compared:
    key = batch.need("score").masked_fill(~valid, -torch.inf)
    order = key.argsort(dim=1, descending=True, stable=True)
    return batch.columns(order, valid.gather(1, order))


def _first(batch: Compared, n: int) -> Compared:
    index = torch.arange(n, device=batch.logp.device).expand(len(batch), n)
    return batch.columns(index)
