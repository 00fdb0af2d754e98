r"""SPIN: the data against the model's own completions.

The winner is the completion in the data, the loser one that the last iterate drew for the same prompt; the last iterate
is the reference too, and is the policy again every N updates (``loss.moves``):

.. math:: L = f\Big( \beta \Big[ \log\frac{\pi(y)}{\pi_t(y)} - \log\frac{\pi(y')}{\pi_t(y')} \Big] \Big), \qquad
    y \sim p_{data},\ y' \sim \pi_t

Over all policies, with the logistic link, the logit that minimises it is that of a classifier of data against samples,
``beta log(pi / pi_t) = log(p_data / pi_t) + c``, so

.. math:: \pi_{t+1} \propto \pi_t \Big( \frac{p_{data}}{\pi_t} \Big)^{1/\beta}

The law of the data is where it rests; with beta = 1 it is reached in one step, with beta < 1/2 a step overshoots by
more than it corrects, with a larger beta the error of the log-odds shrinks by ``1 - 1/beta`` an iterate.

Reference: Chen et al. 2024, arXiv:2401.01335, Eqs. 4.7 and 5.3.
"""

from dataclasses import dataclass
from typing import ClassVar

from girsanov.errors import GirsanovError
from girsanov.language.base import OPPOSE, drawn, reference_of
from girsanov.language.batches import ComparedBatch
from girsanov.language.data import ComparedTexts
from girsanov.language.generation import Sampling
from girsanov.language.preference import PreferenceMethod
from girsanov.language.tokens import Completions, join
from girsanov.methods.base import Data, State, Turn
from girsanov.policy import Policy
from girsanov.types import Batch, Prompts


@dataclass(frozen=True, kw_only=True)
class SelfPlay(PreferenceMethod):
    """A preference loss of the first completion of each row against one of the reference's own.

    Attributes:
        sampling: how the opponent's are drawn.
        rollout_micro_batch: completions drawn at a time; None is all.
    """

    sampling: Sampling = Sampling()
    rollout_micro_batch: int | None = None

    data: ClassVar[Data] = "pairs"

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """The data's completions, and the opponent's."""
        if not isinstance(prompts, ComparedTexts):
            raise GirsanovError("this method learns from completions in the data: give a TextComparisons source")
        given = first(prompts.items)
        asked = [t[r & ~o].tolist() for t, r, o in zip(given.tokens, given.real, given.own, strict=True)]
        opponent = reference_of(policy)
        own = drawn(opponent, asked, prompts.ids, self.sampling, turn, self.rollout_micro_batch, stream=OPPOSE)
        both = join([given, own], opponent.encoder.filler)
        items = both.take(both.tokens.new_tensor(range(len(both))).unflatten(0, (2, -1)).T.flatten()).unflat(2)
        valid = items.own.any(2)
        return self.finished(policy, ComparedBatch(items, valid), state, turn)


def first(items: Completions) -> Completions:
    """The first completion of each row, [B, L]."""
    return Completions(items.tokens[:, 0], items.real[:, 0], items.own[:, 0])
