r"""A policy's value, q and occupation on a lattice, read between the nodes by linear interpolation."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from girsanov.control.environments.base import Environment
from girsanov.control.lattice import Lattice
from girsanov.control.solution import Solution


@dataclass(frozen=True, eq=False)
class GridSolution(Solution):
    """What ``HJB`` returns; states beyond the lattice are read at its edge.

    Attributes:
        environment, lattice: what was solved, and where.
        V: values at the nodes, [N].
        mean, covariance: the policy at the nodes, [N, m] and [N, m, m].
        earned: its averaged reward with the entropy, [N] (per unit time).
        system: the sparse matrix ``beta - generator`` of the chain, [N, N].
    """

    environment: Environment
    lattice: Lattice
    V: Tensor
    mean: Tensor
    covariance: Tensor
    earned: Tensor
    system: Any

    @cached_property
    def slope(self) -> Tensor:
        """grad V at the nodes by central differences (one-sided at the edge), [N, n]."""
        V = self.V.reshape(self.lattice.shape)
        spacing = [axis.h for axis in self.lattice.axes]
        return torch.stack([g.flatten() for g in torch.gradient(V, spacing=spacing, edge_order=2)], 1)

    @cached_property
    def curvature(self) -> Tensor:
        """Second derivatives of V at the nodes, [N, n, n]."""
        return self.lattice.curvature(self.V)

    def value(self, x: Tensor) -> Tensor:
        """V(x), [B]: ``sum_c w_c (V_c + grad V_c . (x - x_c) / 2)`` over the corners, exact for quadratic V."""
        number, weight = self.lattice.corners(x)
        away = self.lattice.inside(x)[:, None] - self.lattice.nodes[number]
        return (weight * (self.V[number] + (self.slope[number] * away).sum(-1) / 2)).sum(-1).to(x)

    def gradient(self, x: Tensor) -> Tensor:
        """grad V(x), [B, n]."""
        return self.lattice.interpolate(self.slope, x)

    def q(self, x: Tensor, a: Tensor) -> Tensor:
        """q(x, a), [B]; its error is that of the second differences of V."""
        env, sigma = self.environment, self.environment.diffusion(x, a)
        along = (env.drift(x, a) * self.gradient(x)).sum(1)
        spread = (sigma @ sigma.mT * self.lattice.interpolate(self.curvature, x)).sum((1, 2)) / 2
        return env.reward(x, a) + along + spread - env.discount * self.value(x)

    def policy(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B, m] and covariance [B, m, m]."""
        return self.lattice.interpolate(self.mean, x), self.lattice.interpolate(self.covariance, x)

    def occupation(self, x: Tensor) -> Tensor:
        """Discounted occupation of the nodes from states x [B, n], each as likely: [N], of sum 1 / discount.

        ``(occupation * earned).sum()`` is the mean of V over x exactly, for x at nodes and without a ``boundary``.
        """
        from scipy.sparse.linalg import spsolve

        return torch.from_numpy(spsolve(self.system.T.tocsc(), self.lattice.deposit(x).numpy()))
