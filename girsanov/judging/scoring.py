"""Judges that score each answer by itself: a reward, or a function of the user's.

``v = sigma((r_a - r_b) / T)``, and 1/2 where the scores differ by no more than ``tie``. T = 0 is the step function.
Scores see one answer at a time, so the order cannot matter.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from girsanov.errors import GirsanovError
from girsanov.judging.base import Answer, Comparison, PairJudge, Verdict
from girsanov.rewards.scores import told

Scorer = Callable[[str, Answer], float]
"""``score(prompt, answer) -> number``, larger is better."""


@dataclass(frozen=True)
class ScoreJudge(PairJudge):
    """A judge made of scores.

    Attributes:
        score: the function.
        temperature: T.
        tie: the gap up to which two scores are a tie.
    """

    score: Scorer
    temperature: float = 0.0
    tie: float = 0.0

    name: ClassVar[str] = "score"

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.tie < 0:
            raise GirsanovError("temperature and tie of a judge must be at least 0")

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """Verdicts; unusable where a score is not finite. Raises GirsanovError if the function does."""
        return [self._of(self._scored(c.prompt, c.a), self._scored(c.prompt, c.b)) for c in comparisons]

    def _scored(self, prompt: str, answer: Answer) -> float:
        try:
            return float(self.score(prompt, answer))
        except Exception as error:
            raise GirsanovError(f"the judge's score raised {told(error)}; mend it") from error

    def _of(self, a: float, b: float) -> Verdict:
        if not (math.isfinite(a) and math.isfinite(b)):
            return Verdict(None, reason=f"scores of {a:g} and {b:g}")
        gap = a - b
        if abs(gap) <= self.tie:
            value = 0.5
        elif self.temperature == 0:
            value = float(gap > 0)
        else:
            z = gap / self.temperature
            value = 1 / (1 + math.exp(-z)) if z > -700 else 0.0
        return Verdict(value, reason=f"scores {a:g} and {b:g}")
