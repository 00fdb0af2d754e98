"""Sampling and scoring at once: the samples of one micro-batch are scored while the next one is rolled out.

With micro-batches that take ``a`` seconds to sample and ``b`` to score in the background, m of them take
``m a + b`` seconds when ``b <= a``, not ``m (a + b)``. Every sample has its own noise, so the size of the micro-batches
changes nothing but the rounding of the network's arithmetic.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from girsanov.clock import phase
from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.base import Turn
from girsanov.models import ModelLike
from girsanov.rewards.base import Reward
from girsanov.rewards.scores import Pending, submit
from girsanov.rollout import rollout
from girsanov.samplers.base import Sampler
from girsanov.types import Prompts, Trajectory

WALK = 2  # noise stream of the sampler's steps; that of the first states is 0


class Stacked:
    """The scores of several micro-batches, in order."""

    def __init__(self, parts: Sequence[Pending]) -> None:
        self.parts = parts

    def result(self) -> Tensor:
        """Waits, then gives the scores [B, R]."""
        return torch.cat([p.result() for p in self.parts])


def sample_and_score(
    model: ModelLike,
    sampler: Sampler,
    grid: Grid,
    x_T: Tensor,
    prompts: Prompts,
    reward: Reward,
    turn: Turn,
    *,
    keep: Collection[int] | None = None,
    micro_batch: int | None = None,
) -> tuple[Trajectory, Pending]:
    """Rolls out from x_T [B, *D] in micro-batches and starts scoring each as soon as it is there.

    Args:
        model, sampler, grid: as in ``rollout``.
        x_T: states at the first time.
        prompts: the B requests.
        reward: what scores the decoded samples; one that is not in a pool is called between two micro-batches.
        turn: the iteration, for the noise of the steps.
        keep: steps to keep, all by default.
        micro_batch: samples a micro-batch; None is all at once.

    Returns:
        The trajectory of all samples, and their scores [B, R] on their way.

    Raises:
        GirsanovError: micro-batches of no samples, and what ``rollout`` and the reward raise.
    """
    if micro_batch is not None and micro_batch < 1:
        raise GirsanovError(f"rollout_micro_batch = {micro_batch} must be at least 1, or None for the whole batch")
    rows = torch.arange(len(prompts)).split(micro_batch or max(1, len(prompts)))
    parts, scores = list[Trajectory](), list[Pending]()
    for row in rows:
        ask = prompts if len(rows) == 1 else prompts.take(row)
        start = x_T if len(rows) == 1 else x_T[row.to(x_T.device)]
        source = turn.noise(ask.ids, WALK) if sampler.stochastic else None
        path = rollout(model, sampler, grid, start, ask.cond, noise=source, keep=keep)
        with phase("decode"):
            decoded = model.decode(path.x0)
        scores.append(submit(reward, decoded, ask))
        parts.append(path)
    return (parts[0], scores[0]) if len(rows) == 1 else (join(parts, prompts), Stacked(scores))


def join(parts: Sequence[Trajectory], prompts: Prompts) -> Trajectory:
    """The chains of several micro-batches as one; states that two steps share are stored once here too."""
    made: dict[tuple[int, ...], Tensor] = {}

    def cat(tensors: Sequence[Tensor]) -> Tensor:
        key = tuple(map(id, tensors))
        if key not in made:
            made[key] = torch.cat(list(tensors))
        return made[key]

    bare = [[dataclasses.replace(tr, cond=None) for tr in p.transitions] for p in parts]
    steps = [dataclasses.replace(_joined(same, cat), cond=prompts.cond) for same in zip(*bare, strict=True)]
    state = _joined([p.state for p in parts], cat)
    return Trajectory(cat([p.x0 for p in parts]), tuple(steps), prompts.cond, state)


def _joined(parts: Sequence[Any], cat: Callable[[Sequence[Tensor]], Tensor]) -> Any:
    """Records of the same step as one: tensors [B, ...] are stacked, what all samples share is that of the first."""
    first = parts[0]
    if isinstance(first, Tensor):
        return first if first.ndim == 0 else cat(parts)
    if isinstance(first, tuple):
        return tuple(_joined(same, cat) for same in zip(*parts, strict=True))
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [f.name for f in dataclasses.fields(first)]
        return dataclasses.replace(first, **{n: _joined([getattr(p, n) for p in parts], cat) for n in names})
    return first
