r"""The old policy of forward-process methods: a moving copy, ``theta_old <- d theta_old + (1 - d) theta``, once an
iteration, with a decay that depends on how far training is.

Reference: Zheng et al. 2025, arXiv:2509.16117, section 4.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.base import State, Turn
from girsanov.methods.forward.base import ForwardMethod
from girsanov.methods.forward.errors import mean_square
from girsanov.policy import Policy

OLD = "old"


class DecaySchedule(ABC):
    """The decay d of an iteration."""

    @abstractmethod
    def __call__(self, i: int) -> float:
        """d in [0, 1) after i iterations; 0 copies the current policy."""


@dataclass(frozen=True)
class ConstantDecay(DecaySchedule):
    """The same d throughout."""

    decay: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise GirsanovError(f"a decay lies in [0, 1), not {self.decay}")

    def __call__(self, i: int) -> float:
        """d."""
        return self.decay


@dataclass(frozen=True)
class RampDecay(DecaySchedule):
    """``min(slope max(i - wait, 0), cap)``: on-policy first, then slower and slower.

    Published: (0.001, 0.5, 0), and (0.0075, 0.999, 75) for text rendering.
    """

    slope: float = 0.001
    cap: float = 0.5
    wait: int = 0

    def __post_init__(self) -> None:
        if not (self.slope >= 0 and 0 <= self.cap < 1):
            raise GirsanovError(f"a decay rises (slope >= 0) to a cap in [0, 1), not {self.slope} and {self.cap}")

    def __call__(self, i: int) -> float:
        """``min(slope max(i - wait, 0), cap)``."""
        return min(self.slope * max(i - self.wait, 0), self.cap)


def move_old(policy: Policy, decay: DecaySchedule, state: State, turn: Turn) -> None:
    """Moves the old policy before the batch of an iteration is collected (not before the first, nor twice)."""
    if turn.index > state.get("old_moved", 0):
        policy.move_copy(OLD, decay(turn.index))
        state["old_moved"] = turn.index


@dataclass(frozen=True, kw_only=True)
class ComparesWithOld(ForwardMethod):
    """A method whose loss reads the old policy, and the reference if it has a weight.

    Attributes:
        kappa: weight of the distance from the reference; 0 leaves it (and its pass) out.
        decay: how the old policy follows.
    """

    kappa: float = 0.0
    decay: DecaySchedule = RampDecay()

    @property
    def frozen(self) -> tuple[str, ...]:
        """The old policy, and the reference if it has a weight."""
        return (OLD, "reference") if self.kappa > 0 else (OLD,)

    def setup(self, policy: Policy) -> State:
        """Starts the old policy."""
        policy.keep_copy(OLD)
        return {}

    def before(self, policy: Policy, state: State, turn: Turn) -> None:
        """Moves the old policy."""
        move_old(policy, self.decay, state, turn)

    def pull(self, v: Tensor, frozen: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """``kappa |v - v_ref|^2 / d`` [B], and the distances from old policy and reference to log."""
        gap = {"old_gap": mean_square(v.detach() - frozen[OLD]).mean().sqrt()}
        if self.kappa == 0:
            return v.new_zeros(len(v)), gap
        drift = mean_square(v - frozen["reference"])
        return self.kappa * drift, gap | {"drift": drift.detach().mean()}
