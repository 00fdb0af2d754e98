"""What a reward is: a score of each decoded sample, larger is better.

A reward is cheap to construct: reading a configuration does it, to check the settings. What takes long (weights, a
server) waits for ``prepare``, which a run calls before any work, or for the first call.
"""

from abc import ABC, abstractmethod

import torch
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

    def prepare(self, device: torch.device | str = "cpu") -> None:  # noqa: B027 (most need nothing)
        """Loads what scoring needs, for samples on ``device``, and says now what would go wrong later.

        May be called again. Raises GirsanovError if a model, a file, a package or a server is missing.
        """

    @abstractmethod
    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B] of decoded samples [B, *D]."""
