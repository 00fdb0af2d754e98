r"""The value networks of the bench: linear in their weights, as the policy's correction is.

.. math:: F(x, t) = \sum_k h_k(t)\, \langle w_k, \psi(x) \rangle

with the hats h_k and the standardised features of ``nets.Correction``, and products of two coordinates beside them: on
Gaussian data with a quadratic reward every value of an affine policy is of this form.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from girsanov.bench.nets import Features
from girsanov.grids import Grid
from girsanov.nets.value import ScalarNet
from girsanov.problems.laws import Mixture
from girsanov.processes import Process
from girsanov.types import Cond


def with_products(features: Features, z: Tensor) -> Tensor:
    """Features of z [B, d] and the products ``z_i z_j, i <= j``: [B, F + d (d + 1) / 2]."""
    i, j = torch.triu_indices(z.shape[1], z.shape[1])
    return torch.cat([features(z), z[:, i] * z[:, j]], 1)


@dataclass(frozen=True)
class HatScalar(ScalarNet):
    """What such a network is built from.

    Attributes:
        law: the data, whose noised moments standardise the state.
        grid: the times that have weights of their own.
        features: of the standardised state.
    """

    law: Mixture
    grid: Grid
    features: Features

    def build(self, shape: tuple[int, ...], process: Process, seed: int = 0) -> nn.Module:
        """The network, zero at first."""
        return Hats(self, process)


class Hats(nn.Module):
    """One number a state; times are grid times (shape [B], all alike)."""

    def __init__(self, made_of: HatScalar, process: Process) -> None:
        super().__init__()
        self.features, self.process, self.mean = made_of.features, process, made_of.law.mean
        self.variances, self.basis = torch.linalg.eigh(made_of.law.cov)
        self.knots = made_of.grid.ts.flip(0)
        width = with_products(self.features, torch.zeros(1, made_of.law.d, dtype=torch.float64)).shape[1]
        self.weight = nn.Parameter(torch.zeros(len(self.knots), width, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """Numbers [B] at states [B, d]."""
        c = self.process(t[0])
        z = (x - c.alpha * self.mean) @ self.basis / (c.alpha**2 * self.variances + c.sigma**2).sqrt()
        j = int(torch.searchsorted(self.knots, t[0]).clamp(1, len(self.knots) - 1))
        share = ((t[0] - self.knots[j - 1]) / (self.knots[j] - self.knots[j - 1])).clamp(0, 1)
        return with_products(self.features, z) @ torch.lerp(self.weight[j - 1], self.weight[j], share)
