"""What becomes of samples whose reward failed.

``Raise()`` ends the run with a sentence (what was saved stays), ``Drop()`` scores NaN, which masks the sample out of
the loss, ``Fallback(score)`` puts a number in its place.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from girsanov.errors import GirsanovError


class OnFailure(ABC):
    """What becomes of samples whose reward failed."""

    @abstractmethod
    def __call__(self, error: GirsanovError) -> float:
        """Their score; may raise the error."""


@dataclass(frozen=True)
class Raise(OnFailure):
    """Ends the run: the reward is wrong and should be mended."""

    def __call__(self, error: GirsanovError) -> float:
        """Raises."""
        raise error


@dataclass(frozen=True)
class Drop(OnFailure):
    """Masks the samples out of the loss."""

    def __call__(self, error: GirsanovError) -> float:
        """NaN."""
        return float("nan")


@dataclass(frozen=True)
class Fallback(OnFailure):
    """A number in place of the missing score."""

    score: float

    def __call__(self, error: GirsanovError) -> float:
        """The number."""
        return self.score


FAILURES: dict[str, type[OnFailure]] = {"raise": Raise, "drop": Drop, "fallback": Fallback}
"""Every answer to a failure by name."""
