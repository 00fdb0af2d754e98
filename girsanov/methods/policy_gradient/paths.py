"""How the samples of a group are drawn and who gets the credit: independent chains here, trees in ``trees.py``."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from girsanov.grids import Grid
from girsanov.methods.advantages.base import Advantage
from girsanov.methods.advantages.scoring import judge
from girsanov.methods.base import State, Turn
from girsanov.methods.online import sample_and_score
from girsanov.models import ModelLike
from girsanov.rewards.base import Reward
from girsanov.rewards.scores import Pending
from girsanov.samplers.base import Sampler
from girsanov.types import Prompts, Trajectory

Signal = tuple[Tensor, Tensor]
"""Advantage [n] and mask [n] of the n rows of a step."""


class Paths(ABC):
    """The shape of a rollout, and who gets the credit."""

    @abstractmethod
    def sample(
        self, model: ModelLike, sampler: Sampler, grid: Grid, x_T: Tensor, prompts: Prompts, reward: Reward,
        turn: Turn, micro_batch: int | None,
    ) -> tuple[Trajectory, Pending]:  # fmt: skip
        """A rollout for the B requests, given a start for each, and the scores of its B ends on their way."""

    @abstractmethod
    def credit(
        self, reward: Reward, pending: Pending, advantage: Advantage, prompts: Prompts, path: Trajectory,
        rows: Sequence[int], state: State, turn: Turn,
    ) -> tuple[Tensor, Tensor, list[Signal]]:  # fmt: skip
        """Rewards and masks of the ends, [B] or [roots, leaves], and the signal of each step's rows."""


@dataclass(frozen=True)
class Chains(Paths):
    """Every sample on its own."""

    def sample(
        self, model: ModelLike, sampler: Sampler, grid: Grid, x_T: Tensor, prompts: Prompts, reward: Reward,
        turn: Turn, micro_batch: int | None,
    ) -> tuple[Trajectory, Pending]:  # fmt: skip
        """Chains, in micro-batches."""
        return sample_and_score(model, sampler, grid, x_T, prompts, reward, turn, micro_batch=micro_batch)

    def credit(
        self, reward: Reward, pending: Pending, advantage: Advantage, prompts: Prompts, path: Trajectory,
        rows: Sequence[int], state: State, turn: Turn,
    ) -> tuple[Tensor, Tensor, list[Signal]]:  # fmt: skip
        """The advantage of the sample, at every step."""
        total, a, mask = judge(reward, pending, advantage, prompts, state, turn)
        return total, mask, [(a, mask)] * len(rows)
