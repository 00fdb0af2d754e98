"""What score as action keeps of a rollout: the path as its critic saw it, and what the losses need of each step."""

import dataclasses
from dataclasses import dataclass

from torch import Tensor

from girsanov.precision import as_wide
from girsanov.types import Batch, Cond, Transition


@dataclass(frozen=True)
class Seen:
    """A step, or the end of the path, as the critic saw it.

    Attributes:
        tr: the step that starts here; None at the end.
        reference: mean of the step under the reference, [B, *D], or None if it was not asked for.
        reward: reward of the denoised sample, [B], or None.
        value: V at the state, [B].
        gradient: ``grad_x V``, [B, *D], or None.
        running: minus the price of the step, float64 [B].
    """

    tr: Transition | None
    reference: Tensor | None
    reward: Tensor | None
    value: Tensor
    gradient: Tensor | None
    running: Tensor


@dataclass(frozen=True)
class Point:
    """A state at which the value is regressed.

    Attributes:
        x, t: [B, *D] (in the dtype that states are kept in) and [].
        reward: reward of the denoised sample, [B], or None.
        target: [B]; a sample without a reward has NaN.
    """

    x: Tensor
    t: Tensor
    reward: Tensor | None
    target: Tensor

    def take(self, index: Tensor) -> "Point":
        """The chosen samples."""
        reward = None if self.reward is None else self.reward[index]
        return Point(self.x[index], self.t, reward, self.target[index])


@dataclass(frozen=True)
class Part:
    """A step at which the policy is trained.

    Attributes:
        tr: what was sampled.
        signal: what the update needs: a target shift or a gradient [B, *D], or an advantage [B].
        reference: mean under the reference, [B, *D], if there is a price.
        old: mean before the first of several updates, [B, *D].
    """

    tr: Transition
    signal: Tensor
    reference: Tensor | None = None
    old: Tensor | None = None

    def take(self, index: Tensor) -> "Part":
        """The chosen samples."""
        reference, old = (None if v is None else v[index] for v in (self.reference, self.old))
        return Part(self.tr.take(index), self.signal[index], reference, old)

    def with_old(self, mean: Tensor) -> "Part":
        """The step with its old mean."""
        return dataclasses.replace(self, old=mean)


@dataclass(frozen=True)
class Diagnosis:
    """Numbers of the whole batch, the same for every part of it."""

    numbers: dict[str, float]

    def take(self, index: Tensor) -> "Diagnosis":
        """Itself."""
        return self


@dataclass(frozen=True)
class ValuedPaths(Batch):
    """Rewards [B] and which samples have one, conditions, trained steps, regressed states, diagnosis."""

    reward: Tensor
    mask: Tensor
    cond: Cond
    parts: tuple[Part, ...]
    points: tuple[Point, ...]
    diagnosis: Diagnosis

    def metrics(self) -> dict[str, Tensor | float]:
        """Mean and spread of the rewards that arrived, the share that did not, and the diagnosis of the value."""
        kept = as_wide(self.reward[self.mask])
        spread = kept.std(correction=0) if len(kept) else kept.mean()
        dropped = 1.0 - len(kept) / len(self.reward)
        return {"reward": kept.mean(), "reward_std": spread, "dropped": dropped, **self.diagnosis.numbers}
