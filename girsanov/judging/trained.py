r"""A trained reward model as judge: all answers are scored together, each once, texts and pictures alike.

The value is that of ``ScoreJudge``, ``v = sigma((r_a - r_b) / T)``. A model trained by Bradley-Terry means its gaps as
log-odds, so T = 1 gives the probability that it was trained to state; T = 0 says who is ahead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from girsanov.errors import GirsanovError
from girsanov.judging.base import Answer, Comparison, PairJudge, Verdict
from girsanov.judging.scoring import ScoreJudge

if TYPE_CHECKING:
    from girsanov.reward_models.model import RewardModel

Asked = tuple[str, Answer]


@dataclass(frozen=True)
class RewardJudge(PairJudge):
    """A judge made of a reward model.

    Attributes:
        model: of texts or of pictures.
        temperature: T.
        tie: the gap up to which two scores are a tie.
    """

    model: "RewardModel"
    temperature: float = 0.0
    tie: float = 0.0

    name: ClassVar[str] = "reward"

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """Verdicts. Raises GirsanovError if the model does not read such answers."""
        every = list(dict.fromkeys((c.prompt, answer) for c in comparisons for answer in (c.a, c.b)))
        scores = dict(zip(every, self._scores(every), strict=True))
        known = ScoreJudge(lambda prompt, answer: scores[prompt, answer], self.temperature, self.tie)
        return known(comparisons)

    def _scores(self, asked: Sequence[Asked]) -> list[float]:
        prompts, files = [p for p, _ in asked], [a.image for _, a in asked if a.image is not None]
        if 0 < len(files) < len(asked):
            raise GirsanovError(
                "a reward model judges texts or pictures: some of these answers are the one and some the other"
            )
        found = self.model.pictures(prompts, files) if files else self.model.texts(prompts, [a.text for _, a in asked])
        return [float(r) for r in found]
