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
        keys, values, counts, row = self._stored(r, groups, state)
        for which, samples in groups.by_size():
            mine, new = (
                row.index_select(0, which),
                samples[:, -self.size :],
            )  # of more than fit, only the last ones stay
            total = counts.index_select(0, mine) + samples.shape[1]
            counts.index_copy_(0, mine, total)
            slot = (total.unsqueeze(1) - torch.arange(new.shape[1], 0, -1, device=r.device)) % self.size
            slot += (mine * self.size).unsqueeze(1)
            values.view(-1, r.shape[1]).index_copy_(0, slot.view(-1), r.index_select(0, new.reshape(-1)))
        state.update(advantage_keys=keys, advantage_values=values, advantage_counts=counts)
        filled = counts.index_select(0, row).clamp_max_(self.size).unsqueeze(1)
        std, mean = spread(values.index_select(0, row), filled)
        if int(filled.min()) < self.min_count:
            own = filled >= self.min_count
            mean, std = torch.where(own, mean, r.mean(0)), torch.where(own, std, r.std(0, correction=0))
        signal, scale = std > 1e-12 * mean.abs(), std + self.eps
        return (r - groups.each(mean)) / groups.each(scale), groups.each(signal)

    def _stored(self, r: Tensor, groups: Groups, state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keys [P], buffers [P, size, R] and counts [P] with room for this batch, and the row of each group [G]."""
        known = state.get("advantage_keys", groups.keys[:0]).to(r.device)
        row = torch.searchsorted(known, groups.keys)
        if len(known) and torch.equal(known[row.clamp_max(len(known) - 1)], groups.keys):
            return known, state["advantage_values"].to(r, copy=True), state["advantage_counts"].to(row, copy=True), row
        keys = torch.unique(torch.cat([known, groups.keys]))
        values, counts = r.new_zeros(len(keys), self.size, r.shape[1]), torch.zeros_like(keys)
        if len(known):
            place = torch.searchsorted(keys, known)
            values[place] = state["advantage_values"].to(values)
            counts[place] = state["advantage_counts"].to(counts)
        return keys, values, counts, torch.searchsorted(keys, groups.keys)


def spread(values: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
    """Std and mean [P, R] of the first ``filled`` [P, 1] of each buffer, [P, size, R]."""
    if int(filled.min()) == values.shape[1]:
        return torch.std_mean(values, 1, correction=0)
    used = (torch.arange(values.shape[1], device=values.device) < filled).unsqueeze(2)
    mean = torch.where(used, values, 0.0).sum(1) / filled
    return (torch.where(used, values - mean.unsqueeze(1), 0.0).square().sum(1) / filled).sqrt(), mean
