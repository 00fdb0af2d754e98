"""What a policy gradient keeps of a rollout: the trained steps with their advantages, old and reference means."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.methods.advantages.scoring import reward_metrics
from girsanov.models import ModelLike
from girsanov.samplers.base import Sampler
from girsanov.types import Batch, Kernel, Transition


@dataclass(frozen=True)
class Scored:
    """A trained step.

    Attributes:
        tr: what was sampled, with its conditions; n rows, ``width`` for each of the batch's samples, side by side.
        sampler: what it was sampled with.
        width: rows of a sample: 1 on chains, nodes of this depth on trees.
        advantage, mask: of each row, [n] (set once the rewards are there).
        reference: the reference's mean at the same states, [n, *D], if a penalty needs it.
        old: the mean before the first update, [n, *D], if there are several.
    """

    tr: Transition
    sampler: Sampler
    width: int = 1
    advantage: Tensor | None = None
    mask: Tensor | None = None
    reference: Tensor | None = None
    old: Tensor | None = None

    def take(self, index: Tensor) -> "Scored":
        """The chosen samples."""
        each = torch.arange(self.width, device=self.tr.x_s.device)
        rows = (index.to(self.tr.x_s.device).unsqueeze(1) * self.width + each).flatten()
        pick = [None if v is None else v[rows] for v in (self.advantage, self.mask, self.reference, self.old)]
        return Scored(self.tr.take(rows), self.sampler, self.width, *pick)

    def with_reference(self, model: ModelLike) -> "Scored":
        """The step with the reference's mean at its states."""
        with torch.no_grad():
            return dataclasses.replace(self, reference=self.kernel(model).mean)

    def credited(self, samples: int, advantage: Tensor, mask: Tensor) -> "Scored":
        """The step with the signal of its rows, of a batch of so many samples."""
        return dataclasses.replace(self, width=len(advantage) // samples, advantage=advantage, mask=mask)

    @property
    def sampled(self) -> Kernel:
        """The kernel that the step was drawn from."""
        return Kernel(self.tr.mean, self.tr.std, self.tr.stochastic)

    def kernel(self, model: ModelLike) -> Kernel:
        """The kernel of a model at the states of this step."""
        return self.sampler.kernel(model, self.tr.asked, self.tr.step, self.tr.cond)[0]


@dataclass(frozen=True)
class PathBatch(Batch):
    """Rewards of the ends ([B] on chains, [roots, leaves] on trees), which of them carry a signal, trained steps."""

    reward: Tensor
    mask: Tensor
    parts: tuple[Scored, ...]

    def with_old(self, means: Sequence[Tensor]) -> "PathBatch":
        """The same batch with the old mean of every step."""
        parts = [dataclasses.replace(p, old=mean) for p, mean in zip(self.parts, means, strict=True)]
        return dataclasses.replace(self, parts=tuple(parts))

    def metrics(self) -> dict[str, Tensor | float]:
        """Mean and spread of the reward, and the share of samples without a signal (``zero_variance``)."""
        return reward_metrics(self.reward.flatten(), self.mask.flatten())


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
