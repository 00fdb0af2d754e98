"""A trained reward model by the folder it was saved in."""

from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from girsanov.rewards.base import Reward
from girsanov.types import Prompts

if TYPE_CHECKING:
    from girsanov.reward_models.model import RewardModel


class Trained(Reward):
    """The reward model of a folder (``girsanov train-reward`` writes one).

    Args:
        path: the folder.
        pessimism: how many standard deviations of an ensemble's members are subtracted.
    """

    name = "trained"

    def __init__(self, path: str, pessimism: float = 0.0) -> None:
        self.path, self.pessimism = str(path), pessimism
        self.differentiable = self.model.differentiable

    @cached_property
    def model(self) -> "RewardModel":
        """The model, read once."""
        from girsanov.reward_models.model import load_reward_model

        return load_reward_model(self.path, self.pessimism)

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B]."""
        return self.model(x, prompts)
