r"""From the words of a model to the value of a comparison.

===========  ===============================================================  =====================================
reader       what it looks for                                                value
===========  ===============================================================  =====================================
brackets     the last of ``[[A]]``, ``[[B]]``, ``[[C]]`` (or ``[[tie]]``)     1, 0, 1/2
json         the last JSON object with ``winner``: "A", "B" or "tie"          1, 0, 1/2
scores       two numbers, A's and B's (``[[7]] [[9]]``, ``8, 6``, JSON a, b)  1, 0 or 1/2 by which is larger
===========  ===============================================================  =====================================

An answer without what is looked for has no value; it is never read as a tie.
"""

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

VALUES = {"a": 1.0, "b": 0.0, "c": 0.5, "tie": 0.5}
BRACKETS = re.compile(r"\[\[\s*(a|b|c|tie)\s*\]\]", re.IGNORECASE)
RATING = re.compile(r"\[\[\s*(-?\d+(?:\.\d+)?)\s*\]\]")
ONE = r"(?:[ab]\s*[:=]\s*)?(-?\d+(?:\.\d+)?)(?:\s*/\s*10)?"
NUMBERS = re.compile(rf"^[\s*(\[]*{ONE}[\s,;:]+{ONE}", re.IGNORECASE)


class Reader(ABC):
    """Reads a verdict.

    Attributes:
        asks: what the judge is told to end its answer with.
    """

    asks: ClassVar[str]

    @abstractmethod
    def __call__(self, text: str) -> float | None:
        """The value, or None if there is no verdict in the text."""


@dataclass(frozen=True)
class Brackets(Reader):
    """``[[A]]``, ``[[B]]``, ``[[C]]``."""

    asks: ClassVar[str] = (
        'End with your verdict: "[[A]]" if answer A is better, "[[B]]" if answer B is better, "[[C]]" for a tie.'
    )

    def __call__(self, text: str) -> float | None:
        """The last verdict."""
        found = BRACKETS.findall(text)
        return VALUES[found[-1].lower()] if found else None


@dataclass(frozen=True)
class Json(Reader):
    """``{"winner": "A"}``."""

    asks: ClassVar[str] = 'End with one line of JSON: {"winner": "A"}, {"winner": "B"} or {"winner": "tie"}.'

    def __call__(self, text: str) -> float | None:
        """The last object that names a winner."""
        named = [VALUES.get(str(o["winner"]).strip().lower()) for o in objects(text) if "winner" in o]
        return named[-1] if named else None


@dataclass(frozen=True)
class Scores(Reader):
    """Two numbers.

    Attributes:
        tie: the gap up to which they are a tie.
    """

    tie: float = 0.0

    asks: ClassVar[str] = "Rate both from 1 to 10, and end with the ratings of A and of B, as in: [[7]] [[4]]"

    def __call__(self, text: str) -> float | None:
        """By the last two ratings."""
        pair = self._pair(text)
        if pair is None or not all(map(math.isfinite, pair)):
            return None
        gap = pair[0] - pair[1]
        return 0.5 if abs(gap) <= self.tie else float(gap > 0)

    def _pair(self, text: str) -> tuple[float, float] | None:
        rated = RATING.findall(text)
        if len(rated) >= 2:
            return float(rated[-2]), float(rated[-1])
        for o in objects(text):
            low = {str(k).lower(): v for k, v in o.items()}
            if all(isinstance(low.get(k), int | float) for k in "ab"):
                return float(low["a"]), float(low["b"])
        bare = [m for line in text.strip().splitlines() if (m := NUMBERS.match(line))]
        return (float(bare[-1][1]), float(bare[-1][2])) if bare else None


def objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text, in order."""
    decoder, at = json.JSONDecoder(), 0
    while (at := text.find("{", at)) >= 0:
        try:
            found, end = decoder.raw_decode(text, at)
        except ValueError:
            at += 1
            continue
        if isinstance(found, dict):
            yield found
        at = end


READERS: dict[str, type[Reader]] = {"brackets": Brackets, "json": Json, "scores": Scores}
"""Every reader by name."""
