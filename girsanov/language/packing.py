r"""Packing: several rows side by side in one, so that no time goes into padding.

Rows of lengths n_1, n_2, ... share one of length C. Each token sees the earlier tokens of its own row alone (a
block-diagonal mask), and counts its place from the start of that row, so the network computes exactly what it would row
by row. First-fit decreasing leaves at most 22 % more bins than the best packing does (asymptotically 11/9).

Reference: Johnson 1973, Near-optimal bin packing algorithms; Krell et al. 2021, arXiv:2107.02027.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which rows share a bin: longest first, each into the first bin with room.

    Raises GirsanovError if a row is longer than a bin.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    if order and lengths[order[0]] > capacity:
        raise GirsanovError(f"row {order[0]} has {lengths[order[0]]} tokens and a bin {capacity}: raise it")
    bins: list[list[int]] = []
    room: list[int] = []
    for i in order:
        at = next((b for b, free in enumerate(room) if free >= lengths[i]), None)
        if at is None:
            bins.append([])
            room.append(capacity)
            at = len(bins) - 1
        bins[at].append(i)
        room[at] -= lengths[i]
    return bins


@dataclass(frozen=True)
class Packed:
    """Rows in bins.

    Attributes:
        row, column: where each token of a bin comes from, int64 [R, C]; row -1 is padding.
        place: its place in its own row, [R, C].
    """

    row: Tensor
    column: Tensor

    @classmethod
    def of(cls, real: Tensor, capacity: int | None = None) -> "Packed":
        """From the mask of padded rows, bool [B, L]; bins hold ``capacity`` tokens, or as many as the longest row."""
        lengths = real.sum(1).tolist()
        bins = first_fit(lengths, max(capacity or 0, max(lengths)))
        width = max(sum(lengths[i] for i in b) for b in bins)
        row, column = torch.full((len(bins), width), -1), torch.zeros(len(bins), width, dtype=torch.int64)
        for k, members in enumerate(bins):
            at = 0
            for i in members:
                row[k, at : at + lengths[i]] = i
                column[k, at : at + lengths[i]] = torch.arange(lengths[i])
                at += lengths[i]
        return cls(row.to(real.device), column.to(real.device))

    @property
    def real(self) -> Tensor:
        """Which tokens of the bins are no padding, bool [R, C]."""
        return self.row >= 0

    def gather(self, values: Tensor) -> Tensor:
        """Values [B, L] of the rows in the bins, [R, C]; padding has that of the first row."""
        return values[self.row.clamp_min(0), self.column]

    def scatter(self, values: Tensor, shape: tuple[int, int]) -> Tensor:
        """Values [R, C, *] of the bins back in the rows, [B, L, *]; 0 where there is no token."""
        out = values.new_zeros(*shape, *values.shape[2:])
        real = self.real
        return out.index_put((self.row[real], self.column[real]), values[real])

    def mask(self, dtype: torch.dtype) -> Tensor:
        """What is added to attention scores, [R, 1, C, C]: 0 where a token may look, the least number elsewhere.

        Padding looks at itself, so that no softmax is empty.
        """
        n = self.row.shape[1]
        same = (self.row[:, :, None] == self.row[:, None, :]) & self.real[:, None, :]
        seen = same & torch.ones(n, n, dtype=torch.bool, device=self.row.device).tril()
        seen |= torch.eye(n, dtype=torch.bool, device=self.row.device)
        zero = torch.zeros(seen.shape, dtype=dtype, device=self.row.device)
        return zero.masked_fill(~seen, torch.finfo(dtype).min).unsqueeze(1)
