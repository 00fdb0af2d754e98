r"""The bench's one network: the exact model plus a correction that is linear in its weights.

.. math:: v(x, t) = v_{ref}(x, t) + \sum_k h_k(t)\, W_k\, \phi(x)

with hats h_k on the grid's times (so that every time of the grid has weights of its own, and times between are
interpolated) and features phi of the state, standardised by the moments of the noised data: constant and linear on
Gaussian data, and bumps along the line on a mixture.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from girsanov.grids import Grid
from girsanov.models import Model
from girsanov.problems.laws import Mixture
from girsanov.types import Cond

Features = Callable[[Tensor], Tensor]
"""Standardised states [B, d] to features [B, F]."""


def affine_features(z: Tensor) -> Tensor:
    """``(1, z)``."""
    return torch.cat([torch.ones_like(z[:, :1]), z], 1)


def bump_features(z: Tensor, reach: float = 4.0, spacing: float = 0.4) -> Tensor:
    """``(1, z, exp(-(z - c)^2 / (2 spacing^2)))`` with centres c on the line."""
    centres = torch.arange(-reach, reach + spacing / 2, spacing, dtype=torch.float64)
    return torch.cat([affine_features(z), torch.exp(-0.5 * ((z - centres) / spacing) ** 2)], 1)


class Correction(nn.Module):
    """The exact network, counted, plus the trainable correction; float64, zero at first.

    Attributes:
        calls: forward passes so far, of the reference too.
    """

    def __init__(self, law: Mixture, model: Model, grid: Grid, features: Features) -> None:
        super().__init__()
        self.exact, self.features, self.knots = model.net, features, grid.ts.flip(0)
        self.process, self.mean, d = model.process, law.mean, model.shape[0]
        self.variances, self.basis = torch.linalg.eigh(law.cov)
        width = features(torch.zeros(1, d, dtype=torch.float64)).shape[1]
        self.weight = nn.Parameter(torch.zeros(len(self.knots), width, d, dtype=torch.float64))
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """Velocities [B, d]."""
        self.calls += 1
        c = self.process(t)
        alpha, sigma = c.alpha.unsqueeze(1), c.sigma.unsqueeze(1)
        z = (x - alpha * self.mean) @ self.basis / (alpha**2 * self.variances + sigma**2).sqrt()
        phi = self.features(z)
        j = torch.searchsorted(self.knots, t.contiguous()).clamp(1, len(self.knots) - 1)
        w = ((t - self.knots[j - 1]) / (self.knots[j] - self.knots[j - 1])).clamp(0, 1).unsqueeze(1)
        if bool((j == j[0]).all()):  # one time for the whole batch, as in every rollout
            weight = torch.lerp(self.weight[j[0] - 1], self.weight[j[0]], w[0, 0])
            return self.exact(x, t, None) + phi @ weight
        hats = torch.zeros(len(x), len(self.knots), dtype=torch.float64)
        hats = hats.scatter(1, (j - 1).unsqueeze(1), 1 - w).scatter(1, j.unsqueeze(1), w)
        return self.exact(x, t, None) + torch.einsum("bk,bf,kfd->bd", hats, phi, self.weight)
