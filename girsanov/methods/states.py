"""Methods that go back to the states of their chains, and the number type that those are kept in.

What such a method replays, linearises or regresses on has to be what was sampled. The states are therefore rounded
within the rollout (``rollout.py``), by the dtype of the first ones; whatever is computed at them, then or later, is
computed at the rounded values in the dtype of step arithmetic (``types.wide``). Methods that keep nothing but the ends
of their chains, or draw none, have nothing to gain and no such setting.
"""

from dataclasses import dataclass

from torch import Tensor

from girsanov.grids import Grid
from girsanov.methods.base import Method
from girsanov.models import ModelLike
from girsanov.noise import Noise
from girsanov.policy import Policy
from girsanov.starts import STORAGE, Storage, first_states
from girsanov.types import Cond


@dataclass(frozen=True, kw_only=True)
class KeepsStates(Method):
    """A method that keeps the states of its chains.

    Attributes:
        storage: dtype of the states: "bf16" and "fp16" take half the memory; None is the policy's.
    """

    storage: Storage | None = None

    def begin(self, policy: Policy, model: ModelLike, grid: Grid, noise: Noise, cond: Cond | None) -> Tensor:
        """The states [B, *D] at the grid's first time, in the dtype that all states of the rollout are kept in.

        Args:
            policy: whose dtype is taken where no storage is set.
            model: what is sampled.
            grid: its times.
            noise: of the first states.
            cond: conditions of the B samples, which may hold clean samples to begin from.
        """
        return first_states(model, grid, noise, cond, STORAGE.get(self.storage, policy.dtype))
