r"""From decoded samples to what an image tower reads, in differentiable torch operations.

Images [B, 1 or 3, H, W] in [-1, 1] go to [0, 1] (values outside are clamped), are resized by the cubic filter with
antialiasing that Pillow uses, brought to a square, and standardised per channel:

.. math:: p = (\mathrm{square}(\mathrm{resize}((x + 1) / 2)) - m) / s.

``crop`` resizes the shorter side and cuts the middle out (CLIP); ``pad`` resizes the longer side and adds black (HPS).
What Pillow does to stored pictures differs by its rounding to 8 bits, and where an image is enlarged by its clipping
between the two axes.

Reference: Radford et al. 2021, arXiv:2103.00020 (the channel statistics).
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from girsanov.errors import GirsanovError

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

Fit = Literal["crop", "pad"]


def pixels(x: Tensor, size: int, fit: Fit = "crop") -> Tensor:
    """Standardised images, float32 (or the wider dtype of x) [B, 3, size, size].

    Raises GirsanovError if they are no images of 1 or 3 channels.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise GirsanovError(f"an image is grey or RGB, [B, 1 or 3, H, W], and these samples are {list(x.shape)}")
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    unit = ((x.clamp(-1, 1) + 1) / 2).expand(-1, 3, -1, -1)
    square = SQUARES[fit](unit, size)
    mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(3, 1, 1) for v in (MEAN, STD))
    return (square - mean) / std


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """Images [B, C, height, width] by the cubic filter, within [0, 1]: its lobes overshoot at edges."""
    if x.shape[-2:] == (height, width):
        return x
    return F.interpolate(x, (height, width), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def cropped(x: Tensor, size: int) -> Tensor:
    """The middle square after the shorter side was resized."""
    short = min(x.shape[-2:])
    height, width = (max(size, int(size * n / short)) for n in x.shape[-2:])
    x = resized(x, height, width)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return x[..., top : top + size, left : left + size]


def padded(x: Tensor, size: int) -> Tensor:
    """The whole image after the longer side was resized, in the middle of a black square."""
    long = max(x.shape[-2:])
    height, width = (max(1, round(size * n / long)) for n in x.shape[-2:])
    x = resized(x, height, width)
    above, left = (size - height) // 2, (size - width) // 2
    return F.pad(x, (left, size - width - left, above, size - height - above))


SQUARES = {"crop": cropped, "pad": padded}


def texts(meta: Sequence[Any], n: int, name: str) -> list[str]:
    """The n prompts as texts: the entries of ``Prompts.meta``, or what they call "text".

    Raises GirsanovError if there are none.
    """
    found = [m.get("text") if isinstance(m, dict) else m for m in meta]
    if len(found) != n or not all(isinstance(t, str) for t in found):
        raise GirsanovError(
            f"the reward {name!r} reads the text of each prompt, and these prompts have none: use it with prompts of "
            'text (girsanov run text-to-image), or give metadata as {"text": ...}'
        )
    return [str(t) for t in found]
