"""Rewards for methods that differentiate them: what is checked at construction, and what is checked of each value."""

import torch
from torch import Tensor

from girsanov.clock import phase, scoring
from girsanov.errors import GirsanovError
from girsanov.models import ModelLike
from girsanov.rewards.base import Reward
from girsanov.rewards.scores import as_scores, check_finite
from girsanov.types import Prompts

INSTEAD = "a policy-gradient or forward-process method (clipped-pg, nft)"


def require_gradient(reward: Reward, method: str) -> None:
    """Refuses a reward that declares itself not differentiable."""
    if not reward.differentiable:
        raise GirsanovError(
            f"{method} needs a differentiable reward and {reward.name!r} is not one: use {INSTEAD}, or write the "
            "reward in differentiable torch operations"
        )


def scores(reward: Reward, model: ModelLike, x0: Tensor, prompts: Prompts) -> Tensor:
    """``r(decode(x0))`` [B] with its graph.

    Raises GirsanovError if the scores have another shape, are not finite, or do not depend differentiably on x0.
    """
    with phase("decode"):
        decoded = model.decode(x0)
    r = as_scores(reward(decoded, prompts), len(x0), reward.name)
    if not r.requires_grad:
        raise GirsanovError(
            f"the reward {reward.name!r} gives no gradient, and this method differentiates it: use {INSTEAD}, or write "
            "the reward in differentiable torch operations"
        )
    check_finite(r.detach(), reward.name)
    return r


def reward_gradient(reward: Reward, model: ModelLike, x0: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """``r(decode(x0))`` [B] and its gradient in x0 [B, *D]; one VJP of reward and decoder.

    Raises GirsanovError as ``scores`` does, and if the gradient is not finite.
    """
    with torch.enable_grad(), scoring():
        x = x0.detach().requires_grad_(True)
        r = scores(reward, model, x, prompts)
        (gradient,) = torch.autograd.grad(r.sum(), x)
    if not bool(gradient.isfinite().all()):
        raise GirsanovError(
            f"the gradient of the reward {reward.name!r} is not finite: clamp what it divides by or takes the log of"
        )
    return r.detach(), gradient
