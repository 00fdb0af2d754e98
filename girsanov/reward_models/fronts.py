r"""What stands between raw items and the network of a reward model: pictures and texts become what it reads.

===========  ==================================  ======================================================
front        reads                               gives the network
===========  ==================================  ======================================================
plain        samples, as they are                x, with the conditions of the prompts
squares      pictures of any size                x resized to P x P, 1 or 3 channels
bytes        texts                               bytes of prompt and answer (``encode_texts``)
clip         pictures and the text of prompts    :math:`(\sqrt S f, S f g)`, see ``frozen.py``
language     texts                               a frozen causal LM's last hidden state
tokens       texts                               token ids of a causal LM with adapters
with-length  texts                               what another front gives, and log(1 + characters)
===========  ==================================  ======================================================

A front has no weights that are trained and is saved by its settings alone; one on a published model keeps a digest of
that model's weights, and refuses others.
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.reward_models.scorers import encode_texts
from girsanov.rewards.pixels import resized
from girsanov.types import Cond, Prompts

GREY = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601), as Pillow has them


class Front(ABC):
    """Raw items to what a network reads.

    Attributes:
        differentiable: whether what it gives of pictures has a gradient in them.
        reads_pictures: whether it reads pictures, and no texts.
        own_samples: whether it takes the samples of one model alone, not pictures of any size.
    """

    differentiable: ClassVar[bool] = False
    reads_pictures: ClassVar[bool] = False
    own_samples: ClassVar[bool] = False

    @abstractmethod
    def images(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Of samples [B, *D] (pictures [B, 1 or 3, H, W] in [-1, 1]). Raises GirsanovError if it reads none."""

    @abstractmethod
    def texts(self, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
        """Of answers. Raises GirsanovError if it reads none."""

    @abstractmethod
    def asked(self, prompts: Prompts) -> Cond:
        """What a network that reads the prompt gets of it, the B rows of a table."""

    @abstractmethod
    def complaint(self, prompt: str, answer: str) -> str | None:
        """Why an answer cannot be read, or None."""


class TextFront(Front):
    """One that reads no pictures."""

    def images(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Raises GirsanovError."""
        raise GirsanovError("this reward model does not read pictures: train one on pictures")


class PictureFront(Front):
    """One that reads no texts."""

    reads_pictures = True

    def texts(self, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
        """Raises GirsanovError."""
        raise GirsanovError("this reward model does not read texts: train one on texts")

    def complaint(self, prompt: str, answer: str) -> str | None:
        """None: pictures are checked when they are opened."""
        return None


class Plain(PictureFront):
    """Samples as they are."""

    differentiable = True
    own_samples = True

    def images(self, x: Tensor, prompts: Prompts) -> Tensor:
        """x."""
        return x

    def asked(self, prompts: Prompts) -> Cond:
        """The prompts' own conditions."""
        return prompts.cond


class Squares(PictureFront):
    """Pictures resized to squares, their shape not kept.

    Args:
        size: P, pixels.
        channels: 1 for grey, 3 for colours.
    """

    differentiable = True

    def __init__(self, size: int, channels: int = 3) -> None:
        if size < 1 or channels not in (1, 3):
            raise GirsanovError(f"squares have a side of 1 pixel or more and 1 or 3 channels, not {size}, {channels}")
        self.size, self.channels = size, channels

    def images(self, x: Tensor, prompts: Prompts) -> Tensor:
        """[B, channels, P, P] in [-1, 1]."""
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise GirsanovError(f"this reward model reads pictures [B, 1 or 3, H, W], not {list(x.shape)}")
        if x.shape[1] > self.channels:
            x = (x * x.new_tensor(GREY).view(3, 1, 1)).sum(1, keepdim=True)
        unit = resized((x.clamp(-1, 1) + 1) / 2, self.size, self.size)
        return (2 * unit - 1).expand(-1, self.channels, -1, -1)

    def asked(self, prompts: Prompts) -> Cond:
        """The prompts' own conditions."""
        return prompts.cond


class Bytes(TextFront):
    """Texts as bytes.

    Args:
        length: how many are read.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def texts(self, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
        """Ids [N, L]."""
        return encode_texts(prompts, answers, self.length)

    def asked(self, prompts: Prompts) -> Cond:
        """The prompts' own conditions."""
        return prompts.cond

    def complaint(self, prompt: str, answer: str) -> str | None:
        """None: what is too long is cut."""
        return None


class WithLength(TextFront):
    """What another front gives of texts, and the logarithm of 1 + the answer's characters as the last feature.

    Args:
        inner: the other front.
    """

    def __init__(self, inner: Front) -> None:
        self.inner = inner

    def texts(self, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
        """Features [N, F + 1]."""
        phi = self.inner.texts(prompts, answers)
        length = torch.tensor([float(len(a)) for a in answers]).log1p()
        return torch.cat([phi, length.to(phi).unsqueeze(1)], 1)

    def asked(self, prompts: Prompts) -> Cond:
        """As the other front."""
        return self.inner.asked(prompts)

    def complaint(self, prompt: str, answer: str) -> str | None:
        """As the other front."""
        return self.inner.complaint(prompt, answer)


def requests(texts: Sequence[str]) -> Prompts:
    """Texts as prompts."""
    n = torch.arange(len(texts))
    return Prompts(Cond({}, torch.zeros_like(n)), n, n, tuple(texts))


def rows_of(texts: Sequence[str]) -> tuple[list[str], Tensor]:
    """The distinct texts, and which of them each is, int64 [N]."""
    distinct = list(dict.fromkeys(texts))
    place = {text: i for i, text in enumerate(distinct)}
    return distinct, torch.tensor([place[text] for text in texts])


def picture(file: Path | bytes) -> Tensor:
    """A picture as [1, 3, H, W] in [-1, 1]. Raises GirsanovError if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            colours = image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        what = "a picture" if isinstance(file, bytes) else str(file)
        raise GirsanovError(f"{what} cannot be read ({str(error).splitlines()[0]})") from error
    x = torch.frombuffer(bytearray(colours.tobytes()), dtype=torch.uint8).reshape(colours.height, colours.width, 3)
    return x.permute(2, 0, 1).unsqueeze(0).float() / 127.5 - 1
