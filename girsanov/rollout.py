"""The only time loop: sample a batch step by step, keep what was asked for, and go over it again.

``rollout`` samples; ``replay`` asks a model for its kernels at the stored states (one network pass a step);
``resimulate`` walks the stored means again with noise and no network. None of them opens ``no_grad`` unless told
where gradients begin.

States have the dtype of ``x_T``, steps are taken in float32 at least. Where states are kept in less (bf16), each is
rounded as soon as it is drawn: the next step starts from the rounded value, and the log-prob of a step is that of the
rounded value, so what is replayed is what was sampled. Means are not rounded.
"""

from collections.abc import Collection, Iterator
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as checkpointed

from girsanov.clock import phase
from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.models import ModelLike
from girsanov.noise import NoiseSource
from girsanov.samplers.base import Sampler
from girsanov.types import Cond, Kernel, Stage, Step, Trajectory, Transition, wide


class Branch(Protocol):
    """The hook of tree-shaped rollouts.

    Called after each step but the last with the drawn states; returns an int64 index: row j of the next state is row
    ``index[j]`` of this one (repeat a row to split it, leave it out to prune). The children of a split differ by the
    noise of the steps that follow, so the noise source must give every row its own.
    """

    def __call__(self, step: Step, x_s: Tensor) -> Tensor: ...


@phase("rollout")
def rollout(
    model: ModelLike,
    sampler: Sampler,
    grid: Grid,
    x_T: Tensor,
    cond: Cond | None = None,
    *,
    noise: NoiseSource | None = None,
    keep: Collection[int] | None = None,
    grad_from: int | None = None,
    checkpoint: bool = False,
    branch: Branch | None = None,
    part: range | None = None,
    state: Any = None,
) -> Trajectory:
    """Samples from the states x_T [B, *D] down the grid.

    Args:
        model: current, reference or guided view.
        sampler: the rule of a step.
        grid: the times.
        x_T: states at the first time (``first_states``); their dtype is that of all states.
        cond: conditions of the B samples.
        noise: standard normal source; needed by stochastic samplers.
        keep: indices of the steps to keep (all by default); memory grows with these alone.
        grad_from: index of the first step that gradients flow through; steps before it run without a graph. None
            leaves gradients to the caller.
        checkpoint: recompute each step's activations in the backward pass instead of storing them.
        branch: hook of tree-shaped rollouts.
        part: the steps to run, all by default; x_T are then states at the first of them.
        state: the solver's state before the first of them, from the ``Trajectory`` of the steps before.

    Raises:
        GirsanovError: stochastic sampler without noise, a step index outside the grid, a non-finite state.
    """
    _check(sampler, grid, noise, keep, grad_from)
    kept = range(len(grid)) if keep is None else frozenset(keep)
    fresh = sampler.init(model, grid)
    state = fresh if state is None else state
    x, parent, transitions = x_T, None, []
    for step in grid if part is None else map(grid.__getitem__, part):
        free = grad_from is not None and step.i < grad_from
        with torch.no_grad() if free else nullcontext():
            before = state
            asked = wide(x)
            kernel, state = _kernel(model, sampler, asked, step, cond, state, checkpoint and not free)
            x_s = kernel.sample(noise(asked) if kernel.stochastic and noise is not None else None).to(x.dtype)
        if step.i in kept:
            stages = tuple(Stage(x, s.t, s.weight) if s.x is asked else s for s in kernel.stages)
            drawn = (kernel.mean, kernel.std, kernel.stochastic, stages)
            transitions.append(Transition(x, x_s, step, *drawn, before, parent, cond))
        x, parent = x_s, None
        if branch is not None and step.i + 1 < len(grid):
            parent = branch(step, x)
            x, cond, state = x[parent], *(None if v is None else v.take(parent) for v in (cond, state))
    if not bool(torch.isfinite(x).all()):
        raise GirsanovError(
            "sampling ended in states that are not finite: the network returned NaN or infinity, so go back to an "
            "earlier checkpoint, with a lower learning rate or gradient clipping"
        )
    return Trajectory(wide(x), tuple(transitions), cond, state)


def _kernel(
    model: ModelLike, sampler: Sampler, x: Tensor, step: Step, cond: Cond | None, state: Any, recompute: bool
) -> tuple[Kernel, Any]:
    if recompute:
        return checkpointed(sampler.kernel, model, x, step, cond, state, use_reentrant=False)
    return sampler.kernel(model, x, step, cond, state)


def _check(
    sampler: Sampler, grid: Grid, noise: NoiseSource | None, keep: Collection[int] | None, grad_from: int | None
) -> None:
    if sampler.stochastic and noise is None:
        raise GirsanovError(
            f"{type(sampler).__name__} is stochastic and needs noise: pass noise=Noise(seed, iteration, ids)"
        )
    if keep is not None and any(not 0 <= i < len(grid) for i in keep):
        raise GirsanovError(f"keep names a step outside the grid's 0 .. {len(grid) - 1}: {sorted(keep)}")
    if grad_from is not None and not 0 <= grad_from <= len(grid):
        raise GirsanovError(f"grad_from = {grad_from} lies outside the grid's 0 .. {len(grid)}")


def replay(model: ModelLike, sampler: Sampler, trajectory: Trajectory) -> Iterator[tuple[Transition, Kernel]]:
    """The kernels of a model at the stored states, one network pass a step, lazily."""
    for tr in trajectory:
        yield tr, sampler.kernel(model, tr.asked, tr.step, tr.cond, tr.state)[0]


def resimulate(trajectory: Trajectory, noise: NoiseSource) -> Iterator[Tensor]:
    """New states ``mean + std z`` drawn from the stored kernels, without a network: yields x_s of every kept step."""
    for tr in trajectory:
        kernel = Kernel(tr.mean, tr.std, tr.stochastic)
        yield kernel.sample(noise(tr.mean) if tr.stochastic else None)
