r"""Compressibility: the size of an image as a JPEG file, in kB (1000 bytes).

.. math:: r_{compressible}(x) = - \mathrm{size}(x) / 1000, \qquad r_{incompressible}(x) = \mathrm{size}(x) / 1000

A black box with no gradient and no learnt parts, which the same Pillow computes the same everywhere. The size counts
the whole file, header and tables included (about 0.3 kB for grey, 0.6 kB for colour, whatever the image).

Reference: Black et al. 2023, arXiv:2305.13301, section 5.1 (there 512 x 512 images, quality 95).
"""

import io

import torch
from PIL import Image
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.rewards.base import Reward
from girsanov.types import Prompts


def to_bytes(x: Tensor) -> Tensor:
    """Images [B, C, H, W] in [-1, 1] (values outside are clamped) as uint8 [B, H, W, C] on the host, rounded.

    Raises GirsanovError if they are no images of 1 or 3 channels.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise GirsanovError(f"an image is grey or RGB, [B, 1 or 3, H, W], and these samples are {list(x.shape)}")
    scaled = (x.detach().float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def jpeg_kilobytes(x: Tensor, quality: int = 95) -> Tensor:
    """Sizes of images [B, C, H, W] in [-1, 1] as JPEG files, in kB, float32 [B] on the host."""
    sizes = []
    for image in to_bytes(x).numpy():
        file = io.BytesIO()
        grey = image.shape[2] == 1
        Image.fromarray(image[:, :, 0] if grey else image).save(file, "JPEG", quality=quality)
        sizes.append(file.tell() / 1000)
    return torch.tensor(sizes, dtype=torch.float32)


class JPEGSize(Reward):
    """``sign * size`` of the JPEG file in kB; see ``Compressible`` and ``Incompressible``."""

    sign: float = 1.0

    def __init__(self, quality: int = 95) -> None:
        if not 1 <= quality <= 95:
            raise GirsanovError(f"the quality of a JPEG file lies between 1 and 95, not {quality}")
        self.quality = quality

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B] in kB."""
        return self.sign * jpeg_kilobytes(x, self.quality).to(x.device)


class Compressible(JPEGSize):
    """Minus the size of the JPEG file in kB: smooth, empty images score high."""

    name = "compressible"
    sign = -1.0


class Incompressible(JPEGSize):
    """The size of the JPEG file in kB: busy, noisy images score high."""

    name = "incompressible"
