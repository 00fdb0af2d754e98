r"""Advantages: rewards of grouped samples made into signals of mean zero.

With ``n`` samples in group g, mean ``m_g`` and standard deviation ``s_g`` (dividing by n):

==================  ===============================  =====================================
advantage           A                                factor of ``grad E r``
==================  ===============================  =====================================
leave-one-out       ``(r - m_g) n / (n - 1)``        1 (unbiased)
group-centred       ``r - m_g``                      ``1 - 1/n``
group-normalised    ``(r - m_g) / (s_g + e)``        ``(1 - 1/n) / (s + e)``
global-std          ``(r - m_g) / (s_all + e)``      ``(1 - 1/n) / (s + e)``
batch-normalised    ``(r - m_all) / (s_all + e)``    ``(1 - 1/N) / (s + e)``
==================  ===============================  =====================================

(the mean contains the sample itself: its covariance with its own score takes 1/n away.) Against a KL penalty of weight
beta, a factor c on the reward acts as ``beta_eff = beta / c``: dividing by the std multiplies beta by it.

All are scatter reductions in float64 over ``[N, R]`` (one column a reward), over all processes. Samples without a
signal (a group of one, or of equal rewards) have A = 0 and are masked, so that their KL can be left out too.

References: Ahmadian et al. 2024, arXiv:2402.14740 (leave-one-out); Shao et al. 2024, arXiv:2402.03300 (group);
Liu et al. 2025, arXiv:2505.05470 (global std, in its code).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.advantages.groups import Groups, leave_one_out
from girsanov.methods.base import State, Turn
from girsanov.precision import as_wide


class Advantage(ABC):
    """Rewards to advantages."""

    @property
    def by_prompt(self) -> bool:
        """Whether the groups are the prompts of the whole run (``prompt_keys``), not the groups of the iteration."""
        return False

    @abstractmethod
    def compute(self, r: Tensor, weights: Tensor, groups: Groups, state: State) -> tuple[Tensor, Tensor]:
        """Advantage [N] and mask [N] of rewards [N, R] with weights [R]."""

    def __call__(
        self, reward: Tensor, group: Tensor, state: State, turn: Turn, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Advantage float64 [B] (0 outside the mask) and mask bool [B] of this process's samples.

        Args:
            reward: [B] or [B, R], any number type; a row with NaN is left out of the statistics, and masked.
            group: group of each sample over all processes, int64 [B].
            state: the method's state; running statistics live there.
            turn: the way to the other processes.
            weights: of the R rewards, 1 each by default.
        """
        if reward.ndim not in (1, 2) or len(reward) != len(group):
            raise GirsanovError(f"rewards have shape [B] or [B, R] for {len(group)} samples, not {list(reward.shape)}")
        r = as_wide(reward)
        r, key = turn.reduce.gather(r.reshape(len(r), -1)), turn.reduce.gather(group.to(r.device))
        w = r.new_ones(r.shape[1]) if weights is None else weights.to(r.dtype).to(r.device)
        if bool(r.isfinite().all()):
            a, mask = self.compute(r, w, Groups.of(key), state)
        else:
            valid = r.isfinite().all(1)
            a, mask = r.new_zeros(len(r)), torch.zeros_like(valid)
            if bool(valid.any()):
                a[valid], mask[valid] = self.compute(r[valid], w, Groups.of(key[valid]), state)
        return turn.reduce.local(torch.where(mask, a, torch.zeros_like(a))), turn.reduce.local(mask)


class Normaliser(Advantage):
    """An advantage that is defined for one reward; several are added up first."""

    @abstractmethod
    def columns(self, r: Tensor, groups: Groups, state: State) -> tuple[Tensor, Tensor]:
        """Advantage [N, R] and mask [N, R], column by column."""

    def compute(self, r: Tensor, weights: Tensor, groups: Groups, state: State) -> tuple[Tensor, Tensor]:
        """That of the weighted sum of the rewards."""
        a, mask = self.columns((r @ weights).unsqueeze(1), groups, state)
        return a.squeeze(1), mask.squeeze(1)


@dataclass(frozen=True)
class LeaveOneOut(Normaliser):
    """``r`` minus the mean of the group's other samples (RLOO)."""

    def columns(self, r: Tensor, groups: Groups, state: State) -> tuple[Tensor, Tensor]:
        """``(r - m_g) n / (n - 1)``."""
        return leave_one_out(r, groups), groups.varied(r)


@dataclass(frozen=True)
class GroupCentred(Normaliser):
    """``r - m_g``, in units of the reward."""

    def columns(self, r: Tensor, groups: Groups, state: State) -> tuple[Tensor, Tensor]:
        """``r - m_g``."""
        return r - groups.mean(r), groups.varied(r)


@dataclass(frozen=True)
class GroupNormalised(Normaliser):
    """``(r - m_g) / (s_g + eps)`` (GRPO)."""

    eps: float = 1e-4

    def columns(self, r: Tensor, groups: Groups, state: State) -> tuple[Tensor, Tensor]:
        """``(r - m_g) / (s_g + eps)``."""
        centred = r - groups.mean(r)
        return centred / (groups.mean(centred.square()).sqrt() + self.eps), groups.varied(r)


@dataclass(frozen=True)
class GlobalStd(Normaliser):
    """``(r - m_g) / (s_all + eps)``: one scale for all prompts, so that easy ones are not blown up."""

    eps: float = 1e-4

    def columns(self, r: Tensor, groups: Groups, state: State) -> tuple[Tensor, Tensor]:
        """``(r - m_g) / (s_all + eps)``."""
        return (r - groups.mean(r)) / (r.std(0, correction=0) + self.eps), groups.varied(r)


@dataclass(frozen=True)
class BatchNormalised(Normaliser):
    """``(r - m_all) / (s_all + eps)``: no groups at all."""

    eps: float = 1e-4

    def columns(self, r: Tensor, groups: Groups, state: State) -> tuple[Tensor, Tensor]:
        """``(r - m_all) / (s_all + eps)``."""
        return (r - r.mean(0)) / (r.std(0, correction=0) + self.eps), (r != r[:1]).any(0).expand_as(r)
