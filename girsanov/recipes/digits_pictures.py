"""Digits as pictures: a sheet for reports, single files for people, and back from files to tensors."""

import io
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.recipes.base import Samples
from girsanov.recipes.digits_data import CLASSES, SHAPE

ZOOM, GAP = 6, 4  # pixels of the sheet per pixel of a digit, and between digits
FILE_ZOOM = 8
PAPER = np.array([250, 248, 243], dtype=np.float64)
INK = np.array([28, 43, 72], dtype=np.float64)


def grey(x: Tensor) -> np.ndarray:
    """Amount of ink in [0, 1] of digits [n, 1, 8, 8]: [n, 8, 8]."""
    return ((x.detach().cpu().double()[:, 0] + 1) / 2).clamp(0, 1).numpy()


def draw(samples: Samples) -> bytes:
    """A sheet with a column for each digit, PNG bytes."""
    rows = max(1, len(samples.x) // CLASSES)
    ink = grey(samples.x[: rows * CLASSES])
    big = np.kron(ink, np.ones((ZOOM, ZOOM)))
    side, pitch = big.shape[1], big.shape[1] + GAP
    sheet = np.zeros((rows * pitch - GAP, CLASSES * pitch - GAP))
    for i, picture in enumerate(big):
        top, left = (i // CLASSES) * pitch, (i % CLASSES) * pitch
        sheet[top : top + side, left : left + side] = picture
    colour = PAPER + sheet[..., None] * (INK - PAPER)
    buffer = io.BytesIO()
    Image.fromarray(colour.round().astype(np.uint8)).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def write(samples: Samples, folder: Path) -> None:
    """One grey PNG a sample, ``0007-3.png``: its number and the digit that was asked for."""
    for i, (ink, label) in enumerate(zip(grey(samples.x), samples.labels, strict=True)):
        pixels = np.kron(255 * (1 - ink), np.ones((FILE_ZOOM, FILE_ZOOM))).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04d}-{label}.png")


def read(folder: Path) -> tuple[Tensor, Tensor]:
    """The pictures of a folder, dark ink on light paper, and their digits from the file names: [n, 1, 8, 8] and [n].

    A file is named ``...-3.png``: what stands before the ending is the digit. Any square size is averaged to 8 x 8.

    Raises GirsanovError if there is no such picture, or one cannot be read.
    """
    found = [(p, re.search(r"(?:^|[-_])(\d)$", p.stem)) for p in sorted(folder.glob("*.png"))]
    named = [(p, int(m.group(1))) for p, m in found if m]
    if not named:
        raise GirsanovError(f"{folder} holds no digits: name the pictures like 0007-3.png, the digit before the ending")
    pixels = []
    for path, _ in named:
        try:
            with Image.open(path) as picture:
                small = picture.convert("L").resize((SHAPE[2], SHAPE[1]), Image.Resampling.BOX)
        except (UnidentifiedImageError, OSError) as error:
            raise GirsanovError(f"{path} cannot be read as a picture: {error}") from None
        pixels.append(torch.from_numpy(1 - np.asarray(small, dtype=np.float32) / 127.5))
    return torch.stack(pixels)[:, None], torch.tensor([digit for _, digit in named])
