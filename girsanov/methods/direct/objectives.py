r"""What is minimised of a differentiable reward r.

==========  ==============================  ========================
objective   loss                            used by
==========  ==============================  ========================
maximise    ``-r``                          DRaFT
hinge       ``scale max(0, margin - r)``    ReFL (margin 2, 1e-3)
distance    ``scale |r - target|``          AlignProp (10, 0.01)
==========  ==============================  ========================
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


class Objective(ABC):
    """A loss of a reward, one number a sample."""

    @abstractmethod
    def __call__(self, reward: Tensor) -> Tensor:
        """Rewards [B] to losses [B]."""


@dataclass(frozen=True)
class Maximise(Objective):
    """``-r``."""

    def __call__(self, reward: Tensor) -> Tensor:
        """``-r``."""
        return -reward


@dataclass(frozen=True)
class Hinge(Objective):
    """``scale max(0, margin - r)``: a sample that reached the margin is left alone."""

    margin: float = 2.0
    scale: float = 1.0

    def __call__(self, reward: Tensor) -> Tensor:
        """``scale max(0, margin - r)``."""
        return self.scale * (self.margin - reward).clamp_min(0)


@dataclass(frozen=True)
class Distance(Objective):
    """``scale |r - target|``: towards a value that the reward should take."""

    target: float = 10.0
    scale: float = 1.0

    def __call__(self, reward: Tensor) -> Tensor:
        """``scale |r - target|``."""
        return self.scale * (reward - self.target).abs()


OBJECTIVES: dict[str, type[Objective]] = {"maximise": Maximise, "hinge": Hinge, "distance": Distance}
"""Every objective by name."""
