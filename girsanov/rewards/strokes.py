r"""Rewards on the strokes of small grey images: bold, thin, ink. Differentiable and visible to the eye.

Images are [B, C, H, W] in [-1, 1]; ``ink = (x + 1) / 2`` is 1 on a full stroke and 0 on paper. The soft stroke mask is

.. math:: m = \mathrm{sigmoid}\big(12\,(\mathrm{blur}_{3 \times 3}(ink) - 0.3)\big)

with a box blur and paper around the image: near 1 where the neighbourhood holds ink. Gradients flow through it.

.. math::
    bold &= \sum_{pixels} m \min(ink, 1) - 2 (1 - m)\, ink^2 \\
    thin &= \sum_{rows} \max_{columns} \min(ink, 1)
        - 2 \sum_{pixels} ink^2 \max(\mathrm{blur}_{3 \times 3}(ink) - 1/3,\, 0) \\
    ink &= \sum_{pixels} ink

Bold grows strokes and keeps the paper clean. A line one pixel wide has a blur of 1/3 on itself, so thin charges only
what is wider, and asks for some ink in every row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.rewards.base import Reward
from girsanov.types import Prompts


def ink(x: Tensor) -> Tensor:
    """``(x + 1) / 2`` of images [B, C, H, W]; raises GirsanovError if x is not a batch of images."""
    if x.ndim != 4:
        raise GirsanovError(f"a stroke reward reads images [B, C, H, W], got shape {list(x.shape)}")
    return (x + 1) / 2


def blur(amount: Tensor) -> Tensor:
    """Box blur over 3 x 3 pixels with paper around, [B, C, H, W]."""
    return F.avg_pool2d(amount, 3, stride=1, padding=1)


def stroke_mask(amount: Tensor) -> Tensor:
    """The soft mask m of strokes for ink [B, C, H, W]."""
    return torch.sigmoid(12 * (blur(amount) - 0.3))


class Bold(Reward):
    """Strong strokes on clean paper; over-optimised, strokes become blobs."""

    name = "bold"
    differentiable = True

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B] of images [B, C, H, W], in pixels."""
        amount = ink(x)
        m = stroke_mask(amount)
        return (m * amount.clamp(max=1.0) - 2 * (1 - m) * amount.square()).flatten(1).sum(1)


class Thin(Reward):
    """Fine strokes, one pixel wide; over-optimised, digits become lines."""

    name = "thin"
    differentiable = True

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B] of images [B, C, H, W], in pixels."""
        amount = ink(x)
        present = amount.clamp(max=1.0).amax(3).flatten(1).sum(1)
        wide = amount.square() * (blur(amount) - 1 / 3).clamp(min=0.0)
        return present - 2 * wide.flatten(1).sum(1)


class Ink(Reward):
    """The amount of ink; over-optimised, paper turns black too."""

    name = "ink"
    differentiable = True

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B] of images [B, C, H, W], in pixels."""
        return ink(x).flatten(1).sum(1)
