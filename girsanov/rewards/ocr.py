r"""How well an image spells the text that its prompt asks for.

.. math:: r(x) = 1 - \min\big(d(\hat s, s), |s|\big) / |s|

with s the wanted text, \hat s what an OCR engine reads, both in lower case without spaces, and d the Levenshtein
distance; if s stands anywhere in \hat s, d = 0, as text around it is no mistake. Between 0 and 1, without gradient.

Reference: Liu et al. 2025, arXiv:2505.05470 (Flow-GRPO), section 5 (visual text rendering); Gong et al. 2025,
arXiv:2503.07703.
"""

import importlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.rewards.base import Reward
from girsanov.rewards.jpeg import to_bytes
from girsanov.rewards.pixels import texts
from girsanov.types import Prompts

Engine = Callable[[np.ndarray], str]
"""``read(image uint8 [H, W, 3]) -> text``."""

QUOTED = re.compile(r'"([^"]+)"|\u201c([^\u201d]+)\u201d')


def tesseract(image: np.ndarray) -> str:
    """What Tesseract reads. Raises GirsanovError where it is not installed."""
    try:
        engine = importlib.import_module("pytesseract")
    except ImportError:
        raise GirsanovError(
            "reading text in images needs the package pytesseract: pip install 'girsanov[ocr]', or give engine="
            "my_file.py:fn with fn(image) -> text"
        ) from None
    try:
        return str(engine.image_to_string(image))
    except engine.TesseractNotFoundError:
        raise GirsanovError("Tesseract itself is not installed: install the program tesseract") from None


def edit_distance(a: str, b: str) -> int:
    """The least number of letters to insert, delete or replace that turns a into b (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        corner, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (x != y))
    return row[-1]


def accuracy(read: str, wanted: str) -> float:
    """r of two texts. Raises GirsanovError if nothing is wanted."""
    read, wanted = ("".join(s.lower().split()) for s in (read, wanted))
    if not wanted:
        raise GirsanovError("the text that an image should show is empty: leave such prompts out")
    if wanted in read:
        return 1.0
    return 1 - min(edit_distance(read, wanted), len(wanted)) / len(wanted)


class OCRAccuracy(Reward):
    """Spelling of the text that is wanted: the prompt's metadata under ``column``, else what it puts in quotes.

    Args:
        engine: reads an image.
        column: name of the metadata that holds the text.
    """

    name = "ocr"

    def __init__(self, engine: Engine = tesseract, column: str = "ocr") -> None:
        self.engine, self.column = engine, column

    def prepare(self, device: torch.device | str = "cpu") -> None:
        """Reads a white page. Raises GirsanovError where the engine is not installed."""
        self.engine(np.full((32, 32, 3), 255, np.uint8))

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B] in [0, 1]. Raises GirsanovError if a prompt says nothing that is to be written."""
        wanted = [self.wanted(m, t) for m, t in zip(prompts.meta, texts(prompts.meta, len(x), self.name), strict=True)]
        levels = to_bytes(x)
        images = levels.expand(*levels.shape[:3], 3).contiguous().numpy()
        scores = [accuracy(self.engine(image), text) for image, text in zip(images, wanted, strict=True)]
        return torch.tensor(scores, dtype=x.dtype, device=x.device)

    def wanted(self, meta: Any, text: str) -> str:
        """The text that an image should show."""
        if isinstance(meta, dict) and isinstance(meta.get(self.column), str):
            return str(meta[self.column])
        quoted = ["".join(groups) for groups in QUOTED.findall(text)]
        if not quoted:
            raise GirsanovError(
                f"the prompt {text!r} does not say what is to be written: put it in double quotes, or give it as a "
                f"column {self.column!r} of the prompts"
            )
        return " ".join(quoted)
