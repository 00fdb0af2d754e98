"""What finds objects in images, and what it finds."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from girsanov.errors import GirsanovError


@dataclass(frozen=True)
class Detected:
    """An object in an image.

    Attributes:
        label: its class.
        box: left, top, right, bottom, in pixels.
        score: how sure the detector is, in [0, 1].
        color: its colour, where the detector (or what runs after it) says one.
        mask: its pixels, bool [H, W], where the detector gives them.
    """

    label: str
    box: tuple[float, float, float, float]
    score: float = 1.0
    color: str | None = None
    mask: Tensor | None = None


class Detector(ABC):
    """Finds objects. As for a reward, constructing one loads nothing."""

    def prepare(self, device: torch.device | str = "cpu") -> None:  # noqa: B027 (a user's own may need nothing)
        """Loads what is needed. Raises GirsanovError if it is missing."""

    @abstractmethod
    def __call__(self, images: Tensor, rules: Sequence[Mapping[str, Any]]) -> Sequence[Sequence[Detected]]:
        """The objects of each of images [B, C, H, W] in [-1, 1], which have these rules."""


class FunctionDetector(Detector):
    """A function ``detect(images, rules) -> the objects of each`` of the user's."""

    def __init__(self, fn: Callable[[Tensor, Sequence[Mapping[str, Any]]], Sequence[Sequence[Detected]]]) -> None:
        self.fn = fn

    def __call__(self, images: Tensor, rules: Sequence[Mapping[str, Any]]) -> Sequence[Sequence[Detected]]:
        """What the function finds."""
        return self.fn(images, rules)


def as_detector(value: Any, name: str | None = None) -> Detector:
    """A detector, a class of one without arguments, or a function, as a detector."""
    if isinstance(value, type) and issubclass(value, Detector):
        return value()
    if isinstance(value, Detector):
        return value
    if callable(value):
        return FunctionDetector(value)
    raise GirsanovError(f"a detector is a function detect(images, rules) -> objects, not a {type(value).__name__}")
