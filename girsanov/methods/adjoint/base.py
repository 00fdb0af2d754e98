r"""What the adjoint methods share: they regress the velocity on ``v_ref + u*`` at the points that a rollout visited.

.. math:: L = \frac{1}{n} \sum_{i=1}^{n} w_i\, \| v_\theta(x_i, t_i) - v_{ref}(x_i, t_i) - u_i^* \|^2 / d

A member says where the points come from, what ``u*`` is there and how a point is weighted (``w``).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from girsanov.methods.base import Chunk
from girsanov.models import velocity
from girsanov.policy import Policy
from girsanov.precision import as_wide
from girsanov.types import Batch, Cond, wide


@dataclass(frozen=True)
class Target:
    """The regression at one point of each sample's path.

    Attributes:
        x: [B, *D], in the dtype that states are kept in.
        t: [] (the same for all samples).
        reference: velocity of the reference at x, [B, *D].
        control: ``u*``, [B, *D].
        weight: factor of this point's squared error.
        limit: where a sample's error ``w |.|^2`` (summed over d) is clipped; None is nowhere.
    """

    x: Tensor
    t: Tensor
    reference: Tensor
    control: Tensor
    weight: float = 1.0
    limit: float | None = None

    def take(self, index: Tensor) -> "Target":
        """The chosen samples."""
        return Target(self.x[index], self.t, self.reference[index], self.control[index], self.weight, self.limit)


@dataclass(frozen=True)
class AdjointBatch(Batch):
    """Rewards [B], conditions, and one target a trained point."""

    reward: Tensor
    cond: Cond
    targets: tuple[Target, ...]


def regression(policy: Policy, batch: AdjointBatch) -> Iterator[Chunk]:
    """One chunk a target; a clipped sample adds a constant to the loss and nothing to its gradient.

    Metrics: root mean square of the learned control and of its target, per dimension.
    """
    n = len(batch.targets)
    for target in batch.targets:
        control = velocity(policy.view("current", "train"), wide(target.x), target.t, batch.cond) - target.reference
        error = target.weight * (control - target.control).square().flatten(1).sum(1)
        metrics = {"control": size(control.detach()), "target": size(target.control)}
        if target.limit is not None:
            metrics["clipped"] = as_wide(error.detach() > target.limit).mean()
            error = error.clamp_max(target.limit)
        yield Chunk(error.mean() / (n * control[0].numel()), metrics)


def size(u: Tensor) -> Tensor:
    """Root mean square over the data dimensions, averaged over samples: shape []."""
    return u.flatten(1).square().mean(1).sqrt().mean()


def guided_alike(policy: Policy) -> bool:
    """Whether the adjoint and the loss use the same guidance, so that one reference pass serves both."""
    return policy.guidance.get("adjoint", 1.0) == policy.guidance.get("train", 1.0)
