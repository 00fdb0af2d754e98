"""What reward models learn from: prompts with K items each, best first, and an annotator to simulate.

An item is a vector of features, an image, or a row of token ids: whatever the network reads. The annotator is Plackett
and Luce's: it ranks items by ``r / T`` plus independent Gumbel noise, which gives every ranking the probability
``prod_k softmax(r_k / T, ...)_k``; for two items this is Bradley and Terry's.

Reference: Yellott 1977, doi:10.1016/0022-2496(77)90026-8 (Gumbel noise).
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.noise import generator
from girsanov.prompts import Groups
from girsanov.types import Cond, Prompts

ANNOTATOR = 7301  # noise of the simulated annotator
SPLIT = 7302


@dataclass(frozen=True)
class ComparedPrompts(Prompts):
    """Requests with their items: [B, K, *D], best first; which are there, and their given scores, [B, K]."""

    items: Tensor = dataclasses.field(kw_only=True)
    valid: Tensor | None = dataclasses.field(kw_only=True, default=None)
    score: Tensor | None = dataclasses.field(kw_only=True, default=None)

    def to(self, device: torch.device | str) -> "ComparedPrompts":
        """The same on a device."""
        moved: dict[str, Any] = {k: None if v is None else v.to(device) for k, v in self._tensors().items()}
        return dataclasses.replace(self, cond=self.cond.to(device), **moved)

    def take(self, index: Tensor) -> "ComparedPrompts":
        """The chosen rows."""
        plain = Prompts(self.cond, self.ids, self.group, self.meta).take(index)
        kept = {k: None if v is None else v[index.to(v.device)] for k, v in self._tensors().items()}
        return ComparedPrompts(plain.cond, plain.ids, plain.group, plain.meta, **kept)  # type: ignore[arg-type]

    def _tensors(self) -> dict[str, Tensor | None]:
        return {"items": self.items, "valid": self.valid, "score": self.score}


@dataclass(frozen=True)
class Comparisons:
    """N prompts with K items each, best first, served in epochs; a pure function of the iteration.

    Attributes:
        items: [N, K, *D].
        cond: conditions of the N prompts, or None.
        valid: which items are there, bool [N, K]; all if not given. The first two always are.
        score: scores that were given to the items, [N, K]; NaN where there is none.
        batch_size: prompts an iteration, over all processes.
        seed: key of the order.
    """

    items: Tensor
    cond: Cond | None = None
    valid: Tensor | None = None
    score: Tensor | None = None
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.items.ndim < 3 or len(self.items) == 0 or self.items.shape[1] < 2:
            raise GirsanovError(
                f"comparisons are N prompts with K >= 2 items each, [N, K, *D], not {list(self.items.shape)}"
            )
        for name in ("valid", "score"):
            value = getattr(self, name)
            if value is not None and value.shape != self.items.shape[:2]:
                raise GirsanovError(f"{name} has shape {list(value.shape)}, not [N, K] = {list(self.items.shape[:2])}")
        if self.cond is not None and len(self.cond) != len(self.items):
            raise GirsanovError(f"{len(self.cond)} conditions for {len(self.items)} prompts: give one each")
        if self.valid is not None and not bool(self.valid[:, :2].all()):
            row = int((~self.valid[:, :2].all(1)).nonzero()[0])
            raise GirsanovError(f"row {row} has fewer than two items: leave it out")
        self._check_different()

    def _check_different(self) -> None:
        best, second = self.items[:, 0].flatten(1), self.items[:, 1].flatten(1)
        bad = ~best.isfinite().all(1) | ~second.isfinite().all(1) if best.is_floating_point() else torch.zeros(1) > 0
        if bool(bad.any()):
            raise GirsanovError(f"row {int(bad.nonzero()[0])} holds numbers that are not finite: leave it out")
        same = (best == second).all(1)
        if bool(same.any()):
            row = int(same.nonzero()[0])
            raise GirsanovError(f"chosen equals rejected in {int(same.sum())} rows (row {row} first): leave them out")

    @classmethod
    def pairs(cls, chosen: Tensor, rejected: Tensor, cond: Cond | None = None, **more: Any) -> "Comparisons":
        """From preferred and other items, [N, *D] each."""
        if chosen.shape != rejected.shape:
            raise GirsanovError(
                f"chosen {list(chosen.shape)} and rejected {list(rejected.shape)} items differ in shape"
            )
        return cls(torch.stack([chosen, rejected], 1), cond, **more)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def conditions(self) -> Cond:
        """The conditions, empty ones if there are none."""
        return Cond({}, torch.zeros(len(self), dtype=torch.int64)) if self.cond is None else self.cond

    def take(self, rows: Tensor) -> "Comparisons":
        """The chosen prompts."""
        kept: dict[str, Any] = {
            k: None if v is None else v[rows] for k, v in (("valid", self.valid), ("score", self.score))
        }
        cond = None if self.cond is None else self.cond.take(rows)
        return dataclasses.replace(self, items=self.items[rows], cond=cond, **kept)

    def split(self, held_out: float, seed: int = 0) -> tuple["Comparisons", "Comparisons"]:
        """The rest, and a share to test on. Raises GirsanovError if either side has none."""
        n = round(held_out * len(self))
        if not 0 < n < len(self):
            raise GirsanovError(f"a share of {held_out:g} of {len(self)} rows leaves nothing on one side")
        order = torch.randperm(len(self), generator=generator((seed, SPLIT)))
        return self.take(order[n:]), self.take(order[:n])

    def batch(self, iteration: int, rank: int = 0, world_size: int = 1) -> ComparedPrompts:
        """This process's rows of an iteration; ``group`` is the row of each."""
        rows, ids, _ = Groups(len(self), self.batch_size, 1, self.seed).share(iteration, rank, world_size)
        part = self.take(rows)
        return ComparedPrompts(part.conditions, ids, rows, items=part.items, valid=part.valid, score=part.score)


def ranked(
    items: Tensor, reward: Tensor, temperature: float = 1.0, *, cond: Cond | None = None, seed: int = 0, **more: Any
) -> Comparisons:
    """Items [N, K, *D] in the order of a simulated annotator with rewards [N, K]; the rewards become ``score``.

    Args:
        items: what is ranked.
        reward: the annotator's taste.
        temperature: T; 0 ranks without error.
        cond: conditions of the N prompts.
        seed: key of the annotator's noise.
        more: further fields of ``Comparisons``.
    """
    if temperature < 0:
        raise GirsanovError(f"an annotator's temperature must be at least 0, not {temperature}")
    u = torch.rand(reward.shape, generator=generator((seed, ANNOTATOR)), dtype=torch.float64)
    gumbel = -(-u.clamp_min(1e-300).log()).log()
    key = reward.double() / temperature + gumbel if temperature else reward.double()
    order = key.argsort(dim=1, descending=True, stable=True)
    index = order.reshape(*order.shape, *[1] * (items.ndim - 2)).expand_as(items)
    return Comparisons(items.gather(1, index), cond, score=reward.gather(1, order), seed=seed, **more)
