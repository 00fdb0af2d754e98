"""What a reward is: a score of each decoded sample, larger is better."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from girsanov.types import Prompts


class Reward(ABC):
    """Scores of samples.

    Attributes:
        name: what messages and reports call it.
        differentiable: whether gradients flow from the scores to the samples.
    """

    name: str = "reward"
    differentiable: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B] of decoded samples [B, *D]."""
