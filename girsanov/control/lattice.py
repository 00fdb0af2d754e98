r"""A rectangular grid of states: its nodes, its neighbours, differences on it and interpolation in it.

Beyond an edge comes the edge itself, so a jump off the grid is no jump: differences and rates that are written with
``neighbour`` are those of a chain that is reflected there.
"""

import itertools
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from girsanov.errors import GirsanovError


@dataclass(frozen=True)
class Axis:
    """n equally spaced points from low to high. Raises GirsanovError if there are fewer than 3."""

    low: float
    high: float
    n: int

    def __post_init__(self) -> None:
        if not (self.n >= 3 and self.low < self.high):
            raise GirsanovError(f"an axis needs at least 3 points from low to a larger high, not {self}")

    @property
    def h(self) -> float:
        """Distance of neighbours."""
        return (self.high - self.low) / (self.n - 1)

    @property
    def points(self) -> Tensor:
        """The points, float64 [n]."""
        return torch.linspace(self.low, self.high, self.n, dtype=torch.float64)


@dataclass(frozen=True)
class Lattice:
    """The product of axes; N nodes in row-major order.

    Attributes:
        axes: one for each state.
    """

    axes: tuple[Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Points along each axis."""
        return tuple(axis.n for axis in self.axes)

    @property
    def h(self) -> Tensor:
        """Spacings, [n]."""
        return torch.tensor([axis.h for axis in self.axes], dtype=torch.float64)

    @cached_property
    def index(self) -> Tensor:
        """Where each node is along each axis, int64 [N, n]."""
        return torch.cartesian_prod(*(torch.arange(k) for k in self.shape)).reshape(-1, len(self.axes))

    @cached_property
    def nodes(self) -> Tensor:
        """The states at the nodes, float64 [N, n]."""
        return torch.stack([axis.points[i] for axis, i in zip(self.axes, self.index.T, strict=True)], 1)

    @cached_property
    def edge(self) -> Tensor:
        """Whether a node lies on the edge of the grid, bool [N]."""
        return ((self.index == 0) | (self.index == torch.tensor(self.shape) - 1)).any(1)

    def flat(self, index: Tensor) -> Tensor:
        """Numbers [...] of the nodes at places [..., n], those beyond the edge moved to the edge."""
        strides = torch.tensor([torch.Size(self.shape[i + 1 :]).numel() for i in range(len(self.axes))])
        top = torch.tensor(self.shape) - 1
        return (torch.minimum(index.clamp(min=0), top) * strides).sum(-1)

    def neighbour(self, *offset: int) -> Tensor:
        """Number [N] of the node that lies so many places on along each axis."""
        if offset not in self._neighbours:
            self._neighbours[offset] = self.flat(self.index + torch.tensor(offset))
        return self._neighbours[offset]

    @cached_property
    def _neighbours(self) -> dict[tuple[int, ...], Tensor]:
        return {}

    def unit(self, i: int, sign: int = 1) -> tuple[int, ...]:
        """The offset of one place along axis i."""
        return tuple(sign * (j == i) for j in range(len(self.axes)))

    def slopes(self, V: Tensor) -> tuple[Tensor, Tensor]:
        """Differences of node values [N] forwards and backwards along each axis, [N, n] each."""
        axes = range(len(self.axes))
        up = torch.stack([V[self.neighbour(*self.unit(i))] - V for i in axes], 1) / self.h
        down = torch.stack([V - V[self.neighbour(*self.unit(i, -1))] for i in axes], 1) / self.h
        return up, down

    def curvature(self, V: Tensor) -> Tensor:
        """Second differences of node values [N], symmetric [N, n, n]."""
        up, down = self.slopes(V)
        out = torch.diag_embed((up - down) / self.h)
        for i, j in itertools.combinations(range(len(self.axes)), 2):
            corners = torch.zeros_like(V)
            for s, t in itertools.product((1, -1), repeat=2):
                both = tuple(a + b for a, b in zip(self.unit(i, s), self.unit(j, t), strict=True))
                corners = corners + s * t * V[self.neighbour(*both)]
            out[:, i, j] = out[:, j, i] = corners / (4 * self.h[i] * self.h[j])
        return out

    def inside(self, x: Tensor) -> Tensor:
        """States x [B, n], those beyond the edge moved to the edge; float64 on the host."""
        low, high = (torch.tensor([getattr(axis, end) for axis in self.axes]).double() for end in ("low", "high"))
        return torch.minimum(torch.maximum(x.double().cpu(), low), high)

    def corners(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The nodes around states x [B, n] and their weights in linear interpolation, [B, 2^n] each.

        States beyond the edge are moved to the edge.
        """
        low = torch.tensor([axis.low for axis in self.axes], dtype=torch.float64)
        top = torch.tensor(self.shape, dtype=torch.float64) - 1
        place = torch.minimum((self.inside(x) - low) / self.h, top)
        base = torch.minimum(place.floor(), top - 1)
        part, base = place - base, base.long()
        sides = torch.tensor(list(itertools.product((0, 1), repeat=len(self.axes))))
        weight = torch.where(sides == 1, part[:, None], 1 - part[:, None]).prod(-1)
        return self.flat(base[:, None] + sides), weight

    def interpolate(self, values: Tensor, x: Tensor) -> Tensor:
        """Node values [N, ...] at states x [B, n], [B, ...], linearly between the nodes; as x in dtype and device."""
        number, weight = self.corners(x)
        return torch.einsum("bc,bc...->b...", weight, values[number]).to(x)

    def deposit(self, x: Tensor) -> Tensor:
        """The law of one of the states x [B, n] as weights of the nodes, [N]; the transpose of ``interpolate``."""
        number, weight = self.corners(x)
        out = torch.zeros(len(self.nodes), dtype=torch.float64)
        return out.index_add_(0, number.flatten(), weight.flatten() / len(x))
