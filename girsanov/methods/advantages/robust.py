"""Advantages made of advantages (clipped, per reward), and one with trimmed statistics.

Reference: Li et al. 2025, arXiv:2507.21802 (per-reward normalisation and trimmed statistics, in its code).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.advantages.base import Advantage, GroupNormalised, Normaliser
from girsanov.methods.advantages.groups import Groups
from girsanov.methods.base import State


@dataclass(frozen=True)
class Clipped(Advantage):
    """Another advantage held within ``+-limit``."""

    inner: Advantage = GroupNormalised()
    limit: float = 5.0

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise GirsanovError(f"the limit of an advantage must be positive, not {self.limit}")

    @property
    def by_prompt(self) -> bool:
        """That of the inner advantage."""
        return self.inner.by_prompt

    def compute(self, r: Tensor, weights: Tensor, groups: Groups, state: State) -> tuple[Tensor, Tensor]:
        """``clip(A, -limit, limit)``."""
        a, mask = self.inner.compute(r, weights, groups, state)
        return a.clamp(-self.limit, self.limit), mask


@dataclass(frozen=True)
class PerReward(Advantage):
    """Every reward normalised by itself, then the weighted sum: no reward drowns in the scale of another."""

    inner: Normaliser = GroupNormalised()

    @property
    def by_prompt(self) -> bool:
        """That of the inner advantage."""
        return self.inner.by_prompt

    def compute(self, r: Tensor, weights: Tensor, groups: Groups, state: State) -> tuple[Tensor, Tensor]:
        """``sum_j w_j A(r_j)``; a reward without a signal adds nothing."""
        a, mask = self.inner.columns(r, groups, state)
        return torch.where(mask, a, torch.zeros_like(a)) @ weights, mask.any(1)


@dataclass(frozen=True)
class Trimmed(Normaliser):
    """Group mean and std without the ``share`` lowest and the ``share`` highest rewards of the group.

    Every sample keeps an advantage; an outlier no longer sets the scale of the others.
    """

    share: float = 0.125
    eps: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 <= self.share < 0.5:
            raise GirsanovError(f"trimming drops a share of at least 0 and below 0.5 at each end, not {self.share}")

    def columns(self, r: Tensor, groups: Groups, state: State) -> tuple[Tensor, Tensor]:
        """``(r - trimmed mean) / (trimmed std + eps)``."""
        size = (len(groups.keys), r.shape[1])
        mean, std, signal = r.new_empty(size), r.new_empty(size), torch.empty(size, dtype=torch.bool, device=r.device)
        for which, rows in groups.by_size():
            n = rows.shape[1]
            cut = int(self.share * n)
            kept = r.index_select(0, rows.view(-1)).view(*rows.shape, -1).sort(1).values[:, cut : n - cut]
            std[which], mean[which] = torch.std_mean(kept, 1, correction=0)
            signal[which] = kept[:, 0] < kept[:, -1]
        return (r - groups.each(mean)) / groups.each(std + self.eps), groups.each(signal)
