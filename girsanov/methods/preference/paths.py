"""Pairs of sampled chains: what D3PO, SPO and PRDP keep of a rollout, and log-ratios to the reference along it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.advantages.scoring import reward_metrics
from girsanov.methods.policy_gradient.batch import Scored
from girsanov.models import ModelLike
from girsanov.reductions import Reduction
from girsanov.samplers.base import Sampler
from girsanov.types import Batch, Trajectory, Transition


@dataclass(frozen=True)
class PairedPaths(Batch):
    """P pairs of chains.

    Attributes:
        reward: mean reward of each pair, [P].
        mask: whether it says something, bool [P].
        gap: reward of the better less that of the worse, [P].
        parts: trained steps, two rows a pair (better, worse), with the reference's means.
        prior: log-ratios to the reference before the first update, [P, 2] a step, if a method compares with them.
    """

    reward: Tensor
    mask: Tensor
    gap: Tensor
    parts: tuple[Scored, ...]
    prior: tuple[Tensor, ...] | None = None

    def metrics(self) -> dict[str, Tensor | float]:
        """Mean and spread of the pairs' rewards, and the share of pairs that say nothing."""
        return reward_metrics(self.reward, self.mask)


def needs_density(name: str, sampler: Sampler) -> None:
    """Raises GirsanovError unless the sampler's steps have a density."""
    if not sampler.stochastic or not sampler.single_step:
        raise GirsanovError(
            f"{name} compares likelihoods of steps and {type(sampler).__name__} has none: use a stochastic single-step "
            "sampler, for example GDDIM(eta=1.0)"
        )


def chosen_steps(path: Trajectory, sampler: Sampler, grid: Grid, rows: Tensor, first: int = 0) -> list[Scored]:
    """The trainable steps from ``first`` on, of the given rows of a rollout, two a pair."""
    steps = [tr for tr in path.trainable if tr.step.i >= first]
    if not steps:
        raise GirsanovError(
            f"no step of the {len(grid)} draws noise under {type(sampler).__name__} from {first} on: take more steps"
        )
    return [Scored(_bare(tr).take(rows), sampler, 2) for tr in steps]


def _bare(tr: Transition) -> Transition:
    return Transition(tr.x_t, tr.x_s, tr.step, tr.mean, tr.std, tr.stochastic, cond=tr.cond)


def log_ratios(part: Scored, model: ModelLike, reduce: Reduction) -> Tensor:
    """``log pi(x_s | x_t) - log pi_ref(x_s | x_t)`` of a step, [P, 2]."""
    assert part.reference is not None
    return part.kernel(model).log_ratio(part.reference, part.tr.x_s, reduce).unflatten(0, (-1, 2))


def clipped(log_ratio: Tensor, clip: float) -> Tensor:
    """``log clip(rho, 1 - clip, 1 + clip)``: silent outside."""
    edges = torch.log1p(torch.tensor([-clip, clip], dtype=log_ratio.dtype, device=log_ratio.device))
    return log_ratio.clamp(edges[0], edges[1])
