"""What the direct-gradient methods share: a rollout without a graph up to a cut, and a loss of rewards after it.

All noise is drawn while collecting, that of the differentiable steps included, so a loss is a pure function of its
batch and no step is run twice.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from girsanov.grids import Grid
from girsanov.methods.base import Chunk, Turn
from girsanov.methods.direct.objectives import Objective
from girsanov.policy import Policy
from girsanov.precision import as_wide
from girsanov.rollout import rollout
from girsanov.samplers.base import Sampler
from girsanov.starts import first_states
from girsanov.types import Batch, Prompts


@dataclass(frozen=True)
class Index:
    """The first differentiable step: a number that all samples share."""

    i: int

    def take(self, index: Tensor) -> "Index":
        """Itself."""
        return self


@dataclass(frozen=True)
class CutBatch(Batch):
    """Samples on their way.

    Attributes:
        x: states before the step ``first``, [B, *D].
        noises: noise for what comes, [B, *D] each.
        prompts: the requests.
        first: the step that comes next.
        state: the solver's state before it.
    """

    x: Tensor
    noises: tuple[Tensor, ...]
    prompts: Prompts
    first: Index
    state: Any = None


def run_up_to(
    first: int, policy: Policy, sampler: Sampler, grid: Grid, prompts: Prompts, turn: Turn, draws: int
) -> CutBatch:
    """The steps before ``first`` under the current policy, without a graph; ``draws`` further noises are drawn."""
    with torch.no_grad():
        model, noise = policy.view("current", "rollout"), turn.noise(prompts.ids)
        x_T = first_states(model, grid, noise, prompts.cond, policy.dtype)
        path = rollout(model, sampler, grid, x_T, prompts.cond, noise=noise, keep=(), part=range(first))
        noises = tuple(noise(x_T) for _ in range(draws))
    return CutBatch(path.x0, noises, prompts, Index(first), path.state)


def reward_chunk(objective: Objective, reward: Tensor) -> Chunk:
    """The mean loss of rewards [B], with their mean as a metric."""
    values = as_wide(reward.detach())
    return Chunk(objective(reward).mean(), {"reward": values.mean(), "reward_std": values.std(correction=0)})
