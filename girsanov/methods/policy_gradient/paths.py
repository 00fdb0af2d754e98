r"""How the samples of a group are drawn: independent chains, or trees that share their beginnings.

In a tree a path splits at some steps, and a node's reward is the mean over the leaves below it, so two children of one
node differ by what the split decided: credit falls on steps, and the steps near the root are sampled once for all their
leaves. Advantages are those of the nodes of one depth within their group.

Reference: Li et al. 2025, arXiv:2509.06040 (BranchGRPO; splits at steps 0, 3, 6, 9 of 20, two children each).
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.advantages.base import Advantage
from girsanov.methods.advantages.groups import prompt_keys
from girsanov.methods.advantages.scoring import judge
from girsanov.methods.base import State, Turn
from girsanov.methods.online import WALK, sample_and_score
from girsanov.models import ModelLike
from girsanov.rewards.base import Reward
from girsanov.rewards.scores import Pending, submit, weights
from girsanov.rollout import rollout
from girsanov.samplers.base import Sampler
from girsanov.types import Prompts, Step, Trajectory

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
        self, reward: Reward, pending: Pending, advantage: Advantage, prompts: Prompts, rows: Sequence[int],
        state: State, turn: Turn,
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
        self, reward: Reward, pending: Pending, advantage: Advantage, prompts: Prompts, rows: Sequence[int],
        state: State, turn: Turn,
    ) -> tuple[Tensor, Tensor, list[Signal]]:  # fmt: skip
        """The advantage of the sample, at every step."""
        total, a, mask = judge(reward, pending, advantage, prompts, state, turn)
        return total, mask, [(a, mask)] * len(rows)


@dataclass(frozen=True)
class Trees(Paths):
    """Paths that split into ``fan`` children at the given places of the grid (shares of its steps).

    A tree has the largest power of ``fan`` that divides the group size as its leaves, so small groups split at the
    first places only; a group may hold several trees. A place listed twice splits twice.
    """

    splits: tuple[float, ...] = (0.0, 0.15, 0.3, 0.45)
    fan: int = 2

    def __post_init__(self) -> None:
        if self.fan < 2 or not all(0 <= s < 1 for s in self.splits):
            raise GirsanovError(f"a tree splits into 2 or more at shares of the grid in [0, 1), not {self}")

    def leaves(self, prompts: Prompts) -> tuple[int, int]:
        """Leaves of a tree, and how many of the splits are used."""
        size = math.gcd(*torch.unique_consecutive(prompts.group, return_counts=True)[1].tolist())
        depth = 0
        while depth < len(self.splits) and size % self.fan ** (depth + 1) == 0:
            depth += 1
        return self.fan**depth, depth

    def sample(
        self, model: ModelLike, sampler: Sampler, grid: Grid, x_T: Tensor, prompts: Prompts, reward: Reward,
        turn: Turn, micro_batch: int | None,
    ) -> tuple[Trajectory, Pending]:  # fmt: skip
        """One rollout of all trees: leaf j is request j, a node draws from the stream of its first leaf."""
        if micro_batch is not None:
            raise GirsanovError("trees are rolled out at once: leave rollout_micro_batch at None")
        leaves, depth = self.leaves(prompts)
        at = Counter(int(s * len(grid)) for s in self.splits[:depth])

        def grow(rows: int, before: int) -> Tensor:
            return torch.arange(rows, device=x_T.device).repeat_interleave(self.fan ** at[before])

        roots = torch.arange(0, len(prompts), leaves, device=x_T.device)[grow(len(prompts) // leaves, 0)]
        source = turn.noise(prompts.ids, WALK)

        def branch(step: Step, x_s: Tensor) -> Tensor:
            return grow(len(x_s), step.i + 1)

        def noise(like: Tensor) -> Tensor:
            return source.every(len(prompts) // len(like)).normal(tuple(like.shape[1:]), like.dtype)

        start, cond = x_T[roots], prompts.cond.take(roots.to(prompts.cond.index.device))
        path = rollout(model, sampler, grid, start, cond, noise=noise, branch=branch)
        return path, submit(reward, model.decode(path.x0), prompts)

    def credit(
        self, reward: Reward, pending: Pending, advantage: Advantage, prompts: Prompts, rows: Sequence[int],
        state: State, turn: Turn,
    ) -> tuple[Tensor, Tensor, list[Signal]]:  # fmt: skip
        """The advantage of each node's mean reward among the nodes of its depth."""
        scores, w = pending.result().detach().to(turn.device), weights(reward)
        key = prompt_keys(prompts) if advantage.by_prompt else prompts.group
        found = dict[int, Signal]()
        for n in [len(prompts), *rows]:
            if n not in found:
                nodes = scores.view(n, -1, scores.shape[1]).nanmean(1)  # of the leaves that have a score
                found[n] = advantage(nodes, key.view(n, -1)[:, 0], state, turn, w)
        leaves, _ = self.leaves(prompts)
        total = scores.to(w.dtype) @ w.to(scores.device)
        return total.view(-1, leaves), found[len(prompts)][1].view(-1, leaves), [found[n] for n in rows]
