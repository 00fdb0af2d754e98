"""Which samples belong together: scatter reductions over groups, groups as tables, and prompts as group numbers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from girsanov.types import Prompts


@dataclass(frozen=True)
class Groups:
    """Which of N samples belong together.

    Attributes:
        keys: the distinct group numbers, sorted, [G].
        index: position in ``keys`` of each sample's group, [N].
        count: samples of each group, [G].
    """

    keys: Tensor
    index: Tensor
    count: Tensor

    @classmethod
    def of(cls, group: Tensor) -> "Groups":
        """From the group numbers [N]."""
        return cls(*torch.unique(group, return_inverse=True, return_counts=True))

    def mean(self, x: Tensor) -> Tensor:
        """Group means of x [N, R], given back to every sample: [N, R]."""
        total = x.new_zeros(len(self.keys), x.shape[1]).scatter_add_(0, self._rows(x), x)
        return self.each(total / self.count.to(x.dtype).unsqueeze(1))

    def varied(self, x: Tensor) -> Tensor:
        """Whether a sample's group holds different values, to the bit: bool [N, R]."""
        rows, shape = self._rows(x), (len(self.keys), x.shape[1])
        high = x.new_full(shape, -torch.inf).scatter_reduce_(0, rows, x, "amax")
        low = x.new_full(shape, torch.inf).scatter_reduce_(0, rows, x, "amin")
        return self.each(high > low)

    def each(self, x: Tensor) -> Tensor:
        """A value of every group, [G, R], given to every sample: [N, R]."""
        return x.index_select(0, self.index)

    def by_size(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The groups of each size n: their positions in ``keys`` [g], and their samples by arrival, [g, n]."""
        order, start = torch.argsort(self.index, stable=True), self.count.cumsum(0) - self.count
        for n in sorted(set(self.count.tolist())):
            which = (self.count == n).nonzero().squeeze(1)
            place = start.index_select(0, which).unsqueeze(1) + torch.arange(n, device=order.device)
            yield which, order.index_select(0, place.view(-1)).view(-1, n)

    def _rows(self, x: Tensor) -> Tensor:
        return self.index.unsqueeze(1).expand_as(x)


def leave_one_out(x: Tensor, groups: Groups) -> Tensor:
    """``x`` minus the mean of the other members of its group, [N, R]; x itself in a group of one."""
    n = groups.count[groups.index].unsqueeze(1)
    return torch.where(n > 1, (x - groups.mean(x)) * (n / (n - 1).clamp_min(1)), x)


def prompt_keys(prompts: Prompts) -> Tensor:
    """A number for the prompt of each sample that is the same in every iteration and process, int64 [B].

    A hash of ``meta`` (of its "text", if it is a mapping); without ``meta`` the group numbers themselves.
    """
    if not prompts.meta:
        return prompts.group
    texts = [repr(m.get("text", m) if isinstance(m, Mapping) else m) for m in prompts.meta]
    number = {t: int.from_bytes(blake2b(t.encode(), digest_size=8).digest(), "big") >> 1 for t in set(texts)}
    return torch.tensor([number[t] for t in texts], dtype=torch.int64)
