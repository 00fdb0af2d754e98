"""Preference losses on a language model's own completions, scored by a reward or picked by a judge.

G completions of each prompt are drawn from the current policy and scored, and the loss's own selection (best and worst,
judged, accepted, top n, ...) says which are compared.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.judging.base import PairJudge
from girsanov.language.base import CHOOSE, sampled, scored, view
from girsanov.language.batches import ComparedBatch
from girsanov.language.data import text_of
from girsanov.language.game import judged
from girsanov.language.generation import Sampling
from girsanov.language.preference import PreferenceMethod
from girsanov.language.rewards import TextReward
from girsanov.language.tokens import Completions
from girsanov.methods.base import Data, State, Turn
from girsanov.policy import Policy
from girsanov.precision import onto, widest
from girsanov.preferences import Compared
from girsanov.preferences.selection import Judged
from girsanov.types import Batch, Prompts


@dataclass(frozen=True, kw_only=True)
class OnlinePreference(PreferenceMethod):
    """A preference loss on the policy's own completions, scored by a reward.

    Attributes:
        reward: what scores them.
        sampling: how they are drawn.
        temperature: T of the judge that the rewards stand for, where a loss reads win probabilities.
        judge: who says which of two completions wins, for losses that compare the first two of a group (OAIF); the
            reward is then followed, not used. A pair without a usable verdict is a tie.
        rollout_micro_batch: completions drawn at a time; None is all.
    """

    reward: TextReward
    sampling: Sampling = Sampling()
    temperature: float = 1.0
    judge: PairJudge | None = None
    rollout_micro_batch: int | None = None

    data: ClassVar[Data] = "prompts"

    def __post_init__(self) -> None:
        if self.judge is not None and not isinstance(self.loss.items, Judged):
            raise GirsanovError("this loss ranks by scores: leave the judge out, or take oaif, which asks one")

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """Draws, scores and selects."""
        rows = sampled(policy, prompts, self.sampling, turn, self.rollout_micro_batch)
        reward = scored(self.reward, view(policy, "current"), prompts, rows)
        size = group_size(prompts)
        items, score = rows.unflat(size), reward.unflatten(0, (-1, size))
        index, valid = self.chosen(score, prompts, turn, self.odds(policy, prompts, items, score))
        items = pick(items, index)
        score = score.gather(1, index)
        groups = reward.unflatten(0, (-1, size))
        wins = win_probabilities(groups, self.temperature).gather(1, index)
        batch = ComparedBatch(items, valid, score=score, wins=wins, reward=groups)
        return self.finished(policy, batch, state, turn)

    def odds(self, policy: Policy, prompts: Prompts, items: Completions, score: Tensor) -> Tensor:
        """Win probabilities [B, 2] of the first two completions of each group: the judge's, or those of the scores."""
        if self.judge is None or score.shape[1] < 2:
            return duel(score[:, :2], self.temperature)
        model, size = view(policy, "current"), score.shape[1]
        texts = model.encoder.texts(items.flat())
        asked = [text_of(p) for p in prompts.meta[::size]]
        first = judged(self.judge, asked, texts[::size], texts[1::size]).to(score)
        return torch.stack([first, 1 - first], 1)

    def chosen(self, score: Tensor, prompts: Prompts, turn: Turn, odds: Tensor) -> tuple[Tensor, Tensor]:
        """Which completions [B, K] of each group [B, G] are compared, and which of these count."""
        place = torch.arange(score.shape[1], device=score.device, dtype=widest(score.device)).expand_as(score)
        wins = win_probabilities(score, self.temperature)
        u = onto(turn.noise(prompts.ids[:: score.shape[1]], CHOOSE).uniform((score.shape[1],)), score.device)
        group = Compared(place.contiguous(), score=score, wins=wins)
        if isinstance(self.loss.items, Judged):  # a judge compares the first two
            two = slice(None), slice(0, 2)
            group = Compared(place[two].contiguous(), score=score[two], wins=odds)
        kept = self.loss.items(group, u)
        return kept.logp.long(), kept.there


def duel(score: Tensor, temperature: float) -> Tensor:
    """``sigma((r_k - r_other) / T)`` of two completions, [B, 2]."""
    return torch.sigmoid((score - score.flip(1)) / temperature)


def win_probabilities(score: Tensor, temperature: float) -> Tensor:
    """``mean_j sigma((r_k - r_j) / T)`` over the others of a group [B, G]; 1/2 in a group of one."""
    g = score.shape[1]
    if g == 1:
        return torch.full_like(score, 0.5)
    odds = torch.sigmoid((score.unsqueeze(2) - score.unsqueeze(1)) / temperature)
    return (odds.sum(2) - 0.5) / (g - 1)


def pick(items: Completions, index: Tensor) -> Completions:
    """The completions ``index`` [B, K] of [B, G, L]."""
    wide = index.unsqueeze(2).expand(*index.shape, items.tokens.shape[2])
    return Completions(*(v.gather(1, wide) for v in (items.tokens, items.real, items.own)))


def group_size(prompts: Prompts) -> int:
    """How many completions each prompt has. Raises GirsanovError unless it is the same for all, side by side."""
    size = int((prompts.group == prompts.group[0]).sum())
    whole = len(prompts) % size == 0 and bool((prompts.group.view(-1, size) == prompts.group[::size, None]).all())
    if not whole:
        raise GirsanovError("completions are compared within groups of one size, side by side: give TextRequests")
    return size
