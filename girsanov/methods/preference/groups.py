"""Pairs within the groups of a rollout: the best and the worst sample of every prompt, or neighbours."""

from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.advantages.groups import Groups
from girsanov.methods.base import Turn
from girsanov.precision import onto
from girsanov.rewards.base import Reward
from girsanov.rewards.scores import Pending
from girsanov.rewards.scores import total as weighted


def total(reward: Reward, pending: Pending, turn: Turn) -> Tensor:
    """Waits for the scores: the weighted sum of the rewards [B], NaN where a sample was dropped."""
    return weighted(reward, onto(pending.result().detach(), turn.device))


@dataclass(frozen=True)
class GroupPairs:
    """P pairs of samples.

    Attributes:
        better, worse: rows of the rollout, int64 [P].
        valid: whether the pair says something (two different, finite rewards), bool [P].
        reward: mean reward of the two, [P]; NaN where one is missing.
        gap: reward of the better less that of the worse, [P]; 0 where the pair says nothing.
    """

    better: Tensor
    worse: Tensor
    valid: Tensor
    reward: Tensor
    gap: Tensor

    @property
    def rows(self) -> Tensor:
        """Better and worse side by side, int64 [2 P]."""
        return torch.stack([self.better, self.worse], 1).flatten()


def _pairs(first: Tensor, second: Tensor, reward: Tensor) -> GroupPairs:
    swap = (reward[second] > reward[first]) | (reward[first].isnan() & ~reward[second].isnan())
    better, worse = torch.where(swap, second, first), torch.where(swap, first, second)
    gap = reward[better] - reward[worse]
    valid = gap.isfinite() & (gap > 0)
    return GroupPairs(better, worse, valid, (reward[better] + reward[worse]) / 2, torch.where(valid, gap, 0 * valid))


def best_and_worst(reward: Tensor, group: Tensor) -> GroupPairs:
    """One pair a group: its highest and its lowest reward [B]; a reward that is no number is neither."""
    tables, finite = _tables(reward, group), reward.isfinite()
    high, low = torch.where(finite, reward, -torch.inf), torch.where(finite, reward, torch.inf)
    better = torch.cat([t.gather(1, high[t].argmax(1, keepdim=True)).squeeze(1) for t in tables])
    worse = torch.cat([t.gather(1, low[t].argmin(1, keepdim=True)).squeeze(1) for t in tables])
    return _pairs(better, worse, reward)


def neighbours(reward: Tensor, group: Tensor) -> GroupPairs:
    """Samples 0 and 1, 2 and 3, ... of every group, better first; an odd one out is left."""
    tables = _tables(reward, group)
    pairs = torch.cat([t[:, : t.shape[1] // 2 * 2].reshape(-1, 2) for t in tables])
    return _pairs(pairs[:, 0], pairs[:, 1], reward)


def partners(reward: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """The next sample of each sample's group [B], and whether both rewards are there and differ, bool [B]."""
    other = torch.empty_like(group, device=reward.device)
    for table in _tables(reward, group):
        other[table] = table.roll(-1, 1)
    gap = reward - reward[other]
    return other, gap.isfinite() & (gap != 0)


def _tables(reward: Tensor, group: Tensor) -> list[Tensor]:
    """The samples of the groups, [g, n] for every size n."""
    tables = [table for _, table in Groups.of(group.to(reward.device)).by_size()]
    if any(t.shape[1] < 2 for t in tables):
        raise GirsanovError("pairs need at least two samples of a prompt: set group_size to 2 or more")
    return tables
