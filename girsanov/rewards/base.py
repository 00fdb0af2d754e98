"""What a reward is: a score of each decoded sample, larger is better."""

from abc import ABC, abstractmethod

from torch import Tensor

from girsanov.types import Prompts


class Reward(ABC):
    """Scores of samples.

    Attributes:
        name: what messages and reports call it.
        differentiable: whether gradients flow from the scores to the samples; a fact of the class, or of the object
            where it depends on what the object is made of.
    """

    name: str = "reward"
    differentiable: bool = False

    @abstractmethod
    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B] of decoded samples [B, *D]."""
