"""Fewer steps after a window, for an outer solver of high order (MixGRPO-Flash).

Reference: Li et al. 2025, arXiv:2507.21802, section 3.3 and its code.
"""

from dataclasses import dataclass

import torch

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.base import Turn
from girsanov.methods.policy_gradient.schedules import SamplerSchedule
from girsanov.methods.policy_gradient.windows import SlidingWindow
from girsanov.samplers.base import Sampler
from girsanov.samplers.mixed import Mixed


@dataclass(frozen=True)
class Compressed(SamplerSchedule):
    """Another schedule on fewer steps after the window (MixGRPO-Flash): ``ratio`` of them, for a solver of high order.

    The published rule: with the window's last step at i of T, the times after it are ``max(2, floor(ratio (T - i)))``
    points from that window's end to 0, equally spaced along the grid (its code lets one point be enough, and then ends
    above 0).
    """

    inner: SamplerSchedule = SlidingWindow()
    ratio: float = 0.4

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise GirsanovError(f"the share of the steps that stay after a window lies in (0, 1], not {self.ratio}")

    def at(self, sampler: Sampler, grid: Grid, turn: Turn) -> Sampler:
        """That of the other schedule."""
        return self.inner.at(sampler, grid, turn)

    def times(self, sampler: Sampler, grid: Grid) -> Grid:
        """The grid with its end thinned out."""
        assert isinstance(sampler, Mixed)
        end = sampler.start + sampler.length
        points = max(2, int(self.ratio * (len(grid) - end + 1)))
        if end >= len(grid) or points > len(grid) - end:
            return grid
        place = torch.linspace(end, len(grid), points, dtype=torch.float64)
        low = place.floor().long().clamp(max=len(grid) - 1)
        after = torch.lerp(grid.ts[low], grid.ts[low + 1], place - low)
        return Grid(torch.cat([grid.ts[:end], after]))
