"""An advantage whose statistics outlive a batch: running buffers of the rewards of each prompt.

Reference: Black et al. 2023, arXiv:2305.13301, appendix D, and its code.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.advantages.base import Normaliser
from girsanov.methods.advantages.groups import Groups
from girsanov.methods.base import State


@dataclass(frozen=True)
class RunningBuffer(Normaliser):
    """Mean and std over the last ``size`` rewards of the same prompt, from any iteration (DDPO's tracker).

    A prompt with fewer than ``min_count`` rewards on record uses those of the whole batch. The buffers are the
    method's state: ``advantage_keys`` [P], ``advantage_values`` [P, size, R], ``advantage_counts`` [P].
    """

    size: int = 32
    min_count: int = 16
    eps: float = 1e-6

    @property
    def by_prompt(self) -> bool:
        """Always."""
        return True

    def __post_init__(self) -> None:
        if not 1 <= self.min_count <= self.size:
            raise GirsanovError(f"min_count = {self.min_count} must lie between 1 and the buffer's size {self.size}")

    def columns(self, r: Tensor, groups: Groups, state: State) -> tuple[Tensor, Tensor]:
        """``(r - mean) / (std + eps)`` of the prompt's buffer, which holds this batch already."""
        keys, values, counts = self._stored(r, groups, state)
        row = torch.searchsorted(keys, groups.keys)
        rank, n = groups.rank(), groups.count[groups.index]
        recent = rank >= n - self.size  # of more than a bufferful, only the last ones stay
        mine = row[groups.index]
        values[mine[recent], (counts[mine] + rank)[recent] % self.size] = r[recent]
        counts[row] += groups.count
        state.update(advantage_keys=keys, advantage_values=values, advantage_counts=counts)
        filled = counts.clamp_max(self.size)
        slot = (torch.arange(self.size, device=r.device) < filled.unsqueeze(1)).unsqueeze(2).to(r.dtype)
        mean = (values * slot).sum(1) / filled.clamp_min(1).unsqueeze(1)
        std = (((values - mean.unsqueeze(1)).square() * slot).sum(1) / filled.clamp_min(1).unsqueeze(1)).sqrt()
        own = (filled[mine] >= self.min_count).unsqueeze(1)
        mean = torch.where(own, mean[mine], r.mean(0))
        std = torch.where(own, std[mine], r.std(0, correction=0))
        return (r - mean) / (std + self.eps), std > 1e-12 * mean.abs()

    def _stored(self, r: Tensor, groups: Groups, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """The buffers with room for the prompts of this batch."""
        known = state.get("advantage_keys", groups.keys[:0]).to(r.device)
        keys = torch.unique(torch.cat([known, groups.keys]))
        values, counts = r.new_zeros(len(keys), self.size, r.shape[1]), torch.zeros_like(keys)
        if len(known):
            place = torch.searchsorted(keys, known)
            values[place] = state["advantage_values"].to(values)
            counts[place] = state["advantage_counts"].to(counts)
        return keys, values, counts
