r"""Judges: who says which of two answers is better.

A judge's value of a comparison is the probability that the first answer wins, in [0, 1]; 1/2 is a tie and None means
that there is no usable verdict. ``BothOrders`` asks twice, with the answers changed over, and takes the mean

.. math:: y = \tfrac12 \big( v(a, b) + 1 - v(b, a) \big),

in which a preference for a place cancels: a judge that always picks the first answer gives 1/2 everywhere, one that is
swayed by a constant (on the scale of the value) loses it exactly. ``position_bias`` reports what was removed.

Reference: Zheng et al. 2023, arXiv:2306.05685, section 3.4 (both orders, ties).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from girsanov.errors import GirsanovError
from girsanov.evaluation.intervals import Interval, mean_interval


@dataclass(frozen=True)
class Answer:
    """What is judged: a text, or a picture as the bytes of a PNG or JPEG file."""

    text: str = ""
    image: bytes | None = None

    def __post_init__(self) -> None:
        if not self.text.strip() and not self.image:
            raise GirsanovError("an answer is empty: leave such rows out")


@dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt."""

    prompt: str
    a: Answer
    b: Answer

    @property
    def turned(self) -> "Comparison":
        """The same with the answers changed over."""
        return Comparison(self.prompt, self.b, self.a)


@dataclass(frozen=True)
class Verdict:
    """What a judge says of a comparison.

    Attributes:
        value: probability that a wins; 1/2 is a tie, None unusable.
        first, second: the values of the two orders, where both were asked; ``second`` is of (b, a) as it was asked.
        reason: the judge's words, or why there is no value.
    """

    value: float | None
    first: float | None = None
    second: float | None = None
    reason: str = ""


class PairJudge(ABC):
    """A judge of pairs.

    Attributes:
        name: what reports call it.
    """

    name: ClassVar[str] = "judge"

    @abstractmethod
    def __call__(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """One verdict a comparison, in order."""


@dataclass(frozen=True)
class BothOrders(PairJudge):
    """Asks a judge about (a, b) and (b, a).

    Attributes:
        judge: who is asked.
        agree: count a pair on whose winner the two orders do not agree as a tie (MT-Bench's rule) instead of taking the
            mean. For a judge that answers 1, 1/2 and 0 they differ only where one order is a tie.
    """

    judge: PairJudge
    agree: bool = False

    name: ClassVar[str] = "both orders"

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """Verdicts of the means; unusable where either order is."""
        both = self.judge([*comparisons, *(c.turned for c in comparisons)])
        n = len(comparisons)
        return [self._joined(v, w) for v, w in zip(both[:n], both[n:], strict=True)]

    def _joined(self, v: Verdict, w: Verdict) -> Verdict:
        if v.value is None or w.value is None:
            return Verdict(None, v.value, w.value, v.reason if v.value is None else w.reason)
        sides = (v.value, 1 - w.value)
        mean = sum(sides) / 2
        split = self.agree and not (min(sides) > 0.5 or max(sides) < 0.5)
        return Verdict(0.5 if split else mean, v.value, w.value, v.reason)


def position_bias(verdicts: Sequence[Verdict], confidence: float = 0.95) -> Interval:
    """By how much being shown first raises the value: the mean of ``(v(a, b) + v(b, a) - 1) / 2``; 0 without bias.

    Raises GirsanovError if fewer than two verdicts have both orders.
    """
    both = [(v.first, v.second) for v in verdicts if v.first is not None and v.second is not None]
    if len(both) < 2:
        raise GirsanovError("a position bias needs verdicts in both orders: wrap the judge in BothOrders")
    return mean_interval([(v + w - 1) / 2 for v, w in both], confidence)
