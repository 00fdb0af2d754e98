"""From rewards to the signal of a batch: scores, their weighted sum, advantages and the mask, in one place."""

from torch import Tensor

from girsanov.methods.advantages.base import Advantage
from girsanov.methods.advantages.groups import prompt_keys
from girsanov.methods.base import State, Turn
from girsanov.precision import as_wide, onto
from girsanov.rewards.base import Reward
from girsanov.rewards.scores import Pending, total, weights
from girsanov.types import Prompts


def judge(
    reward: Reward, pending: Pending, advantage: Advantage, prompts: Prompts, state: State, turn: Turn
) -> tuple[Tensor, Tensor, Tensor]:
    """Waits for the scores: total reward [B] (NaN where a sample was dropped), advantage [B] and mask [B]."""
    scores = onto(pending.result().detach(), turn.device)
    group = prompt_keys(prompts) if advantage.by_prompt else prompts.group
    a, mask = advantage(scores, group, state, turn, weights(reward))
    return total(reward, scores), a, mask


def reward_metrics(reward: Tensor, mask: Tensor) -> dict[str, Tensor | float]:
    """Mean and spread of the rewards [B] that arrived (NaN if none did), and the shares that have none or no signal.

    The names are always the same: processes average their metrics name by name.
    """
    kept = as_wide(reward)[reward.isfinite()]
    return {
        "zero_variance": as_wide(~mask).mean(),
        "dropped": 1.0 - len(kept) / len(reward),
        "reward": kept.mean(),
        "reward_std": kept.std(correction=0) if len(kept) else kept.mean(),
    }
