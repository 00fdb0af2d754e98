r"""From decoded samples to what the image tower of Qwen2-VL reads, in differentiable torch operations.

Images are resized so that both sides are multiples of f = patch x merge pixels and that they make about ``tokens``
squares of f x f: with the sides rounded to multiples of f, and b = sqrt(h w / (tokens f^2)), an image that is too
large gets ``floor(h / (b f)) f`` and one that is too small ``ceil(h / (b f)) f``, the width likewise. They are
standardised as for CLIP, repeated in time (a still is a video of ``temporal`` equal frames), and cut into patches in
the order in which merge x merge neighbours become one token.

Reference: Wang et al. 2024, arXiv:2409.12191, section 2.1.
"""

import math

import torch
from torch import Tensor

from girsanov.rewards.pixels import MEAN, STD, resized


def sides(height: int, width: int, factor: int, tokens: int) -> tuple[int, int]:
    """Height and width that an image is resized to."""
    limit = tokens * factor**2
    h, w = (max(factor, round(n / factor) * factor) for n in (height, width))
    b = math.sqrt(height * width / limit)
    if h * w > limit:
        h, w = (max(factor, math.floor(n / b / factor) * factor) for n in (height, width))
    elif h * w < limit:
        h, w = (math.ceil(n / b / factor) * factor for n in (height, width))
    return h, w


def standardised(x: Tensor, factor: int, tokens: int) -> Tensor:
    """Images [B, 1 or 3, H, W] in [-1, 1] as [B, 3, h, w], float32 or wider."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    unit = ((x.clamp(-1, 1) + 1) / 2).expand(-1, 3, -1, -1)
    unit = resized(unit, *sides(x.shape[2], x.shape[3], factor, tokens))
    mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(3, 1, 1) for v in (MEAN, STD))
    return (unit - mean) / std


def patches(images: Tensor, patch: int, merge: int, temporal: int) -> tuple[Tensor, Tensor]:
    """Patches [B h w / patch^2, 3 temporal patch^2] of images [B, 3, h, w], and (1, h / patch, w / patch) of each."""
    n, channels, height, width = images.shape
    rows, columns = height // patch, width // patch
    cut = images.view(n, channels, rows // merge, merge, patch, columns // merge, merge, patch)
    cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7)  # image, block row, block column, row, column, channel, y, x
    still = cut.unsqueeze(-3).expand(*cut.shape[:6], temporal, patch, patch)
    grid = torch.tensor([[1, rows, columns]], device=images.device).expand(n, 3)
    return still.reshape(n * rows * columns, channels * temporal * patch**2), grid
