r"""What the adjoint methods share: they regress the velocity on ``v_ref + u*`` at the points that a rollout visited.

.. math:: L = \frac{1}{n} \sum_{i=1}^{n} w_i\, \| v_\theta(x_i, t_i) - v_{ref}(x_i, t_i) - u_i^* \|^2 / d

A member says where the points come from, what ``u*`` is there and how a point is weighted (``w``).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.base import Chunk
from girsanov.models import ModelLike, velocity
from girsanov.policy import Policy
from girsanov.rewards.base import Reward
from girsanov.types import Batch, Cond, Prompts


@dataclass(frozen=True)
class Target:
    """The regression at one point of each sample's path.

    Attributes:
        x: [B, *D].
        t: [] (the same for all samples).
        reference: velocity of the reference at x, [B, *D].
        control: ``u*``, [B, *D].
        weight: factor of this point's squared error.
    """

    x: Tensor
    t: Tensor
    reference: Tensor
    control: Tensor
    weight: float = 1.0

    def take(self, index: Tensor) -> "Target":
        """The chosen samples."""
        return Target(self.x[index], self.t, self.reference[index], self.control[index], self.weight)


@dataclass(frozen=True)
class AdjointBatch(Batch):
    """Rewards [B], conditions, and one target a trained point."""

    reward: Tensor
    cond: Cond
    targets: tuple[Target, ...]


def regression(policy: Policy, batch: AdjointBatch, clip: float | None = None) -> Iterator[Chunk]:
    """One chunk a target. ``clip`` drops the samples whose weighted squared error (summed over d) exceeds it."""
    n = len(batch.targets)
    for target in batch.targets:
        v = velocity(policy.view("current", "train"), target.x, target.t, batch.cond)
        control = v - target.reference
        error = target.weight * (control - target.control).square().flatten(1).sum(1)
        kept = error if clip is None else error.clamp_max(clip)  # a clamped term has no gradient
        size = control.detach().square().flatten(1).mean(1).sqrt().mean()
        metrics = {"control": size, "target": target.control.square().flatten(1).mean(1).sqrt().mean()}
        if clip is not None:
            metrics["clipped"] = (error.detach() > clip).double().mean()
        yield Chunk(kept.mean() / (n * v[0].numel()), metrics)


def reward_gradient(reward: Reward, model: ModelLike, x0: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """``r(decode(x0))`` [B] and its gradient in x0 [B, *D]; one VJP of reward and decoder.

    Raises GirsanovError if the reward does not depend differentiably on the sample, or its gradient is not finite.
    """
    with torch.enable_grad():
        x = x0.detach().requires_grad_(True)
        r = reward(model.decode(x), prompts)
        if not r.requires_grad:
            raise GirsanovError(
                f"the reward {reward.name!r} gives no gradient, and an adjoint method needs one: use a "
                "policy-gradient or forward-process method (clipped-pg, nft), or write the reward in differentiable torch operations"
            )
        (gradient,) = torch.autograd.grad(r.sum(), x)
    if not bool(gradient.isfinite().all()):
        raise GirsanovError(
            f"the gradient of the reward {reward.name!r} is not finite: clamp what it divides by or takes the log of"
        )
    return r.detach(), gradient


def require_gradient(reward: Reward, method: str) -> None:
    """Refuses a reward that declares itself not differentiable."""
    if not reward.differentiable:
        raise GirsanovError(
            f"{method} needs a differentiable reward and {reward.name!r} is not one: use a policy-gradient or "
            "forward-process method (clipped-pg, nft)"
        )


def guided_alike(policy: Policy) -> bool:
    """Whether the adjoint and the loss use the same guidance, so that one reference pass serves both."""
    return policy.guidance.get("adjoint", 1.0) == policy.guidance.get("train", 1.0)
