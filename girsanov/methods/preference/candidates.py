"""Candidates of a step: k draws from the same state, of which one at random goes on, and the pairs they make.

Candidates of a state are draws from one kernel, and the two of a pair have one log-ratio's mean: the network is asked
once a state (``Shared``), in the rollout, for the reference and in the loss.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.grids import Grid
from girsanov.methods.advantages.scoring import reward_metrics
from girsanov.methods.base import Turn
from girsanov.methods.policy_gradient.batch import Scored
from girsanov.methods.preference.noised import Noised
from girsanov.models import ModelLike, Shared
from girsanov.precision import as_wide
from girsanov.preferences.labels import Graded
from girsanov.preferences.pairs import PairLoss
from girsanov.preferences.records import Compared
from girsanov.preferences.scores import Score
from girsanov.rollout import rollout
from girsanov.samplers.base import Sampler
from girsanov.types import Batch, Cond, Prompts, Step, Trajectory, Transition

CHOICE = 11  # noise stream of which candidate goes on


@dataclass(frozen=True)
class StepPairs(Batch):
    """Rewards [B] of the chains, whether their partner's differs (bool [B]), trained steps of two rows a chain, and
    pairs of ends with their rewards [B, 2] for the preference model."""

    reward: Tensor
    mask: Tensor
    parts: tuple[Scored, ...]
    ends: Noised
    scores: Tensor
    cond: Cond

    def metrics(self) -> dict[str, Tensor | float]:
        """Mean and spread of the reward, and the share of samples without a signal."""
        return reward_metrics(self.reward, self.mask)


def candidates(
    model: ModelLike, sampler: Sampler, grid: Grid, x_T: Tensor, prompts: Prompts, turn: Turn, k: int, stream: int
) -> Trajectory:
    """A rollout of k rows a request, side by side: they share their state at the start of every step.

    The network sees every state once.

    Args:
        model, sampler, grid: as in ``rollout``.
        x_T: states at the first time, [B, *D].
        prompts: the B requests.
        turn: the iteration.
        k: candidates a state.
        stream: of the noise of the steps.
    """
    b, device = len(x_T), x_T.device
    every = torch.arange(b).repeat_interleave(k)
    own = (prompts.ids.repeat_interleave(k) * k) + torch.arange(k).repeat(b)
    pick, first = turn.noise(prompts.ids, CHOICE), torch.arange(b, device=device) * k

    def go_on(step: Step, x_s: Tensor) -> Tensor:
        chosen = first + (pick.uniform() * k).long().clamp(max=k - 1).to(device)
        return chosen.repeat_interleave(k)

    cond = prompts.cond.take(every.to(prompts.cond.index.device))
    with torch.no_grad():
        source = turn.noise(own, stream)
        return rollout(Shared(model, k), sampler, grid, x_T.repeat_interleave(k, 0), cond, noise=source, branch=go_on)


def step_pairs(tr: Transition, sampler: Sampler, score: Tensor, k: int, threshold: float) -> Scored:
    """The best and the worst of every k candidates [B k] by their scores, two rows a state; ``mask``: which count."""
    s = score.view(-1, k)
    p = s.softmax(1)
    best, worst = s.argmax(1), s.argmin(1)
    first = torch.arange(len(s), device=s.device) * k
    rows = torch.stack([first + best, first + worst], 1).flatten()
    kept = (p.gather(1, best.unsqueeze(1)) - p.gather(1, worst.unsqueeze(1))).squeeze(1) > threshold
    bare = dataclasses.replace(tr, parent=None)
    return Scored(bare.take(rows), sampler, 2, None, kept.repeat_interleave(2))


def judged(v: Tensor, scores: Tensor, temperature: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The preference model's loss of values [B, 2] for rewards [B, 2], [B], and how often it is right."""
    loss = PairLoss(score=Score(1.0, reference=0.0), labels=Graded(temperature))
    right = ((v[:, 0] - v[:, 1]) * (scores[:, 0] - scores[:, 1])).detach() > 0
    return loss.rows(Compared(v, score=scores)), {"judge_accuracy": as_wide(right).mean()}
