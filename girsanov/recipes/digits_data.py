"""The digits inside scikit-learn: 1,797 real handwritten digits of 8 x 8 pixels, scaled to [-1, 1].

One fixed, class-balanced split: half of the images is for the generator, the other half for the judge. The judge never
sees an image that the generator was trained on, and its accuracy is measured on the generator's half, which it has not
seen.

Reference: Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.pretrain import Dataset
from girsanov.types import Cond, Prompts

CLASSES = 10
SHAPE = (1, 8, 8)
SPLIT_SEED = 0


@dataclass(frozen=True)
class Images:
    """Images with their classes.

    Attributes:
        x: float32 [N, 1, 8, 8] in [-1, 1].
        labels: int64 [N], the digit.
    """

    x: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Digits:
    """The two halves of the data, which share no image."""

    generator: Images
    judge: Images

    def dataset(self) -> Dataset:
        """The generator's half with its class conditions, for pretraining."""
        return Dataset(self.generator.x, digit_cond(self.generator.labels))


@lru_cache(maxsize=1)
def load_digits() -> Digits:
    """Reads the images (no network) and splits every class in two by a fixed seed."""
    from sklearn.datasets import load_digits as read
    from sklearn.model_selection import train_test_split

    raw = read()
    x = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(raw.target, dtype=torch.int64)
    first, second = train_test_split(range(len(x)), test_size=0.5, stratify=raw.target, random_state=SPLIT_SEED)
    return Digits(Images(x[first], labels[first]), Images(x[second], labels[second]))


def digit_cond(labels: Tensor) -> Cond:
    """Class conditions of labels [B], with the null class as their negative branch; raises if one is no digit."""
    labels = torch.as_tensor(labels, dtype=torch.int64)
    if labels.ndim != 1 or len(labels) == 0 or not 0 <= int(labels.min()) <= int(labels.max()) < CLASSES:
        raise GirsanovError(f"digits are a list of classes from 0 to {CLASSES - 1}, got {labels.tolist()}")
    null = Cond({"label": torch.tensor([CLASSES])}, torch.zeros_like(labels))
    return Cond({"label": torch.arange(CLASSES)}, labels, null)


def digit_prompts(labels: Tensor, samples: int = 1, first_id: int = 0, first_group: int = 0) -> Prompts:
    """Requests for ``samples`` images of each of the labels [P]: B = P * samples, images of one request side by side.

    ``meta`` holds the digit of every sample as an int, which is what a reward reads.
    """
    if samples < 1:
        raise GirsanovError(f"a prompt is drawn at least once, not {samples} times")
    cond = digit_cond(labels)
    each = cond.index.repeat_interleave(samples)
    group = first_group + torch.arange(len(cond)).repeat_interleave(samples)
    return Prompts(digit_cond(each), first_id + torch.arange(len(each)), group, tuple(each.tolist()))


def balanced_labels(n: int, generator: torch.Generator | None = None) -> Tensor:
    """n labels, every digit equally often up to one, in order or shuffled by a generator: int64 [n]."""
    labels = torch.arange(n) % CLASSES
    return labels if generator is None else labels[torch.randperm(n, generator=generator)]
