r"""Nash-MD-PG: a policy gradient against a mixture of the policy and its reference, for preferences that are no reward.

For every own completion y an opponent's y' is drawn from the geometric mixture ``pi^{1-a} mu^a`` (``mixture.py``; no
gradient through it), and a preference model or a judge says ``w = P(y > y')``:

.. math:: L = - sg\big[ w - \tfrac12 - \beta D(y) \big] \log\pi(y), \qquad D = \log\pi - \log\mu

(``girsanov/preferences/games.py``). A reward stands for the preference model ``P(y > y') = sigma((r(y) - r(y')) /
T)``; any ``PairJudge`` does, cycles and all. At a fixed a the gradient is 0 where ``beta log(pi / mu) = P(. > pi^mu) +
c``: the regularised equilibrium for a = 0, beside it otherwise.

Reference: Munos et al. 2023, arXiv:2312.00886, section 7.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.judging.base import Answer, Comparison, PairJudge
from girsanov.language.base import OPPOSE, drawn, reference_of, sampled, scored, view
from girsanov.language.batches import ComparedBatch
from girsanov.language.data import text_of
from girsanov.language.generation import Sampling
from girsanov.language.mixture import mixture
from girsanov.language.preference import PreferenceMethod
from girsanov.language.rewards import TextReward
from girsanov.methods.base import Data, State, Turn
from girsanov.policy import Policy
from girsanov.types import Batch, Prompts


@dataclass(frozen=True, kw_only=True)
class MixtureGame(PreferenceMethod):
    """A loss of win probabilities against the mixture.

    Attributes:
        reward: whose difference is the logit of a win; with a judge it is followed, not used.
        share: a, the reference's part in the mixture: 0 plays against itself, 1 against the reference.
        temperature: T of the preference model that the reward stands for.
        judge: who says which of two completions wins, in the place of the reward; no usable verdict is a tie.
        sampling: how completions are drawn, the opponent's too.
        rollout_micro_batch: completions drawn at a time; None is all.
    """

    reward: TextReward
    share: float = 0.125
    temperature: float = 1.0
    judge: PairJudge | None = None
    sampling: Sampling = Sampling()
    rollout_micro_batch: int | None = None

    data: ClassVar[Data] = "prompts"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise GirsanovError(f"the reference's share of the mixture lies in [0, 1], not {self.share}")

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """Draws both sides, and asks who wins."""
        model = view(policy, "current")
        own = sampled(policy, prompts, self.sampling, turn, self.rollout_micro_batch)
        asked, law = [model.encoder.prompt(p) for p in prompts.meta], mixture(model, reference_of(policy), self.share)
        other = drawn(model, asked, prompts.ids, self.sampling, turn, self.rollout_micro_batch, law, OPPOSE)
        reward = scored(self.reward, model, prompts, own)
        if self.judge is None:
            wins = torch.sigmoid((reward - scored(self.reward, model, prompts, other)) / self.temperature)
        else:
            texts = [text_of(p) for p in prompts.meta]
            wins = judged(self.judge, texts, model.encoder.texts(own), model.encoder.texts(other)).to(reward)
        items = own.unflat(1)
        batch = ComparedBatch(items, items.own.any(2), wins=wins.unsqueeze(1), reward=reward)
        return self.finished(policy, batch, state, turn)


def judged(judge: PairJudge, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
    """Probabilities [B] that the first text wins; a tie where there is no usable verdict, or nothing to judge."""
    usable = [bool(a.strip() and b.strip()) for a, b in zip(first, second, strict=True)]
    sides = zip(prompts, first, second, usable, strict=True)
    verdicts = iter(judge([Comparison(p, Answer(a), Answer(b)) for p, a, b, there in sides if there]))
    values = [next(verdicts).value if there else None for there in usable]
    return torch.tensor([0.5 if v is None else v for v in values], dtype=torch.float64)
