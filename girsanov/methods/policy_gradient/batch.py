"""What a policy gradient keeps of a rollout: the trained steps with their advantages, old and reference means."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.methods.advantages.scoring import reward_metrics
from girsanov.models import ModelLike
from girsanov.samplers.base import Sampler
from girsanov.types import Batch, Cond, Kernel, Transition


@dataclass(frozen=True)
class Scored:
    """A trained step.

    Attributes:
        tr: what was sampled.
        sampler: what it was sampled with.
        advantage: of this step, [B] (set once the rewards are there).
        reference: the reference's mean at the same states, [B, *D], if a penalty needs it.
        old: the mean before the first update, [B, *D], if there are several.
    """

    tr: Transition
    sampler: Sampler
    advantage: Tensor | None = None
    reference: Tensor | None = None
    old: Tensor | None = None

    def take(self, index: Tensor) -> "Scored":
        """The chosen samples."""
        rows = index.to(self.tr.x_s.device)
        pick = [None if v is None else v[rows] for v in (self.advantage, self.reference, self.old)]
        return Scored(self.tr.take(rows), self.sampler, *pick)

    def with_reference(self, model: ModelLike, cond: Cond) -> "Scored":
        """The step with the reference's mean at its states."""
        with torch.no_grad():
            return dataclasses.replace(self, reference=self.kernel(model, cond).mean)

    @property
    def sampled(self) -> Kernel:
        """The kernel that the step was drawn from."""
        return Kernel(self.tr.mean, self.tr.std, self.tr.stochastic)

    def kernel(self, model: ModelLike, cond: Cond) -> Kernel:
        """The kernel of a model at the states of this step."""
        return self.sampler.kernel(model, self.tr.x_t, self.tr.step, cond)[0]


@dataclass(frozen=True)
class PathBatch(Batch):
    """Rewards [B], which samples carry a signal (bool [B]), conditions, and the trained steps."""

    reward: Tensor
    mask: Tensor
    cond: Cond
    parts: tuple[Scored, ...]

    def with_old(self, means: Sequence[Tensor]) -> "PathBatch":
        """The same batch with the old mean of every step."""
        parts = [dataclasses.replace(p, old=mean) for p, mean in zip(self.parts, means, strict=True)]
        return dataclasses.replace(self, parts=tuple(parts))

    def metrics(self) -> dict[str, Tensor | float]:
        """Mean and spread of the reward, and the share of samples without a signal (``zero_variance``)."""
        return reward_metrics(self.reward, self.mask)


def no_density(sampler: Sampler) -> str:
    """The sentence for a sampler that a policy gradient cannot use."""
    return (
        f"a policy gradient needs steps that have a density and {type(sampler).__name__} has none: use a stochastic "
        "single-step sampler, for example GDDIM(eta=1.0), or Mixed(GDDIM(1.0), DPMSolverPP2M())"
    )


def no_noise(sampler: Sampler) -> str:
    """The sentence for a grid on which a stochastic sampler draws nothing."""
    return (
        f"no step of the grid draws noise under {type(sampler).__name__}, so there is nothing to train: take more "
        "steps (the last step to t = 0 is noiseless)"
    )
