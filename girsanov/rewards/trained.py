"""A trained reward model by the folder it was saved in."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.rewards.base import Reward
from girsanov.rewards.once import Once
from girsanov.types import Prompts

if TYPE_CHECKING:
    from girsanov.reward_models.model import RewardModel


def load(path: str, pessimism: float) -> "RewardModel":
    """The model of a folder."""
    from girsanov.reward_models.model import load_reward_model

    return load_reward_model(path, pessimism)


def has_gradient(path: str) -> bool:
    """Whether the model of a folder is differentiable, by its settings; no weights are read."""
    from girsanov.reward_models.model import read_scorer

    return read_scorer(path).differentiable


class Trained(Reward):
    """The reward model of a folder (``girsanov train-reward`` writes one).

    Args:
        path: the folder.
        pessimism: how many standard deviations of an ensemble's members are subtracted.
    """

    name = "trained"

    def __init__(self, path: str, pessimism: float = 0.0) -> None:
        if pessimism < 0:
            raise GirsanovError(f"pessimism must be at least 0, not {pessimism}")
        self.path, self.pessimism = str(path), pessimism
        self.gradient, self.model = Once(has_gradient, self.path), Once(load, self.path, pessimism)

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Whether the model is. Raises GirsanovError if the folder holds none."""
        return self.gradient()

    def prepare(self, device: torch.device | str = "cpu") -> None:
        """Reads the model. Raises GirsanovError if the folder holds none."""
        self.model().prepare(device)

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B]."""
        return self.model()(x, prompts)
