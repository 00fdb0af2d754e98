r"""Rewards on where the ink of an image lies: symmetric and slanted. Differentiable and visible to the eye.

With ink ``w >= 0`` at column u and row v (rows count downwards, both from the image's centre) and means taken with
weight w,

.. math:: symmetric = - \sum_{pixels} (w - w_{mirrored})^2, \qquad
    slanted = \frac{-\,Cov_w(u, v)}{Var_w(v)} \sum_{rows} |v|

The fraction is the slope of the least-squares line of column on row: how many columns the writing leans to the right
for each row up. ``slanted`` adds what the rows are shifted by against upright writing.
"""

import torch
from torch import Tensor

from girsanov.rewards.base import Reward
from girsanov.rewards.strokes import ink
from girsanov.types import Prompts

PAPER = 1e-3  # ink added everywhere, so that an empty image has moments


class Symmetric(Reward):
    """Left and right halves mirror each other."""

    name = "symmetric"
    differentiable = True

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B] of images [B, C, H, W], at most 0, in pixels."""
        amount = ink(x)
        return -(amount - amount.flip(3)).square().flatten(1).sum(1)


class Slanted(Reward):
    """Writing that leans to the right, as italics do."""

    name = "slanted"
    differentiable = True

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B] of images [B, C, H, W], in pixels."""
        w = ink(x).clamp(min=0.0).sum(1) + PAPER
        height, wide = w.shape[1:]
        v = torch.arange(height, dtype=x.dtype, device=x.device)[:, None] - (height - 1) / 2
        u = torch.arange(wide, dtype=x.dtype, device=x.device) - (wide - 1) / 2
        w = w / w.sum((1, 2), keepdim=True)
        mean_u, mean_v = (w * u).sum((1, 2), keepdim=True), (w * v).sum((1, 2), keepdim=True)
        covariance = (w * (u - mean_u) * (v - mean_v)).sum((1, 2))
        return -covariance / (w * (v - mean_v).square()).sum((1, 2)) * v.abs().sum()
