r"""What a value is regressed on, along sampled paths.

.. math:: y_k = c_k + (1 - \lambda)\, V(x_{k+1}) + \lambda\, y_{k+1}, \qquad y_n = r(x_0)

with ``c_k`` the running reward of step k (minus its price). ``lam = 1`` is the Monte-Carlo return, ``lam = 0`` TD(0).
The published target is the terminal reward alone, at every step: a value that does not see the price of later steps,
under which the gradient form settles where a KL of every step by itself would put it (``per_step_kl_limit``).

References: Sutton 1988, doi:10.1007/BF00115009 (TD(lambda)); Zhao et al. 2025, arXiv:2502.01819 (terminal reward, as
their code has it).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError


class ValueTarget(ABC):
    """Targets of a value along paths."""

    @abstractmethod
    def running(self, running: Tensor) -> Tensor:
        """The part of the running rewards [B, n] that the value answers for, [B, n]."""

    @abstractmethod
    def __call__(self, values: Tensor, running: Tensor) -> Tensor:
        """Targets [B, n] from values [B, n + 1] (the last is the reward) and the running rewards [B, n]."""


@dataclass(frozen=True)
class TerminalReward(ValueTarget):
    """The reward of the sample, at every step."""

    def running(self, running: Tensor) -> Tensor:
        """None of it."""
        return torch.zeros_like(running)

    def __call__(self, values: Tensor, running: Tensor) -> Tensor:
        """``r``."""
        return values[:, -1:].expand_as(running)


@dataclass(frozen=True)
class LambdaReturn(ValueTarget):
    """TD(lambda) with the running reward; ``lam = 1`` is Monte Carlo."""

    lam: float = 0.95

    def __post_init__(self) -> None:
        if not 0 <= self.lam <= 1:
            raise GirsanovError(f"lam of TD(lambda) lies in [0, 1], not {self.lam}")

    def running(self, running: Tensor) -> Tensor:
        """All of it."""
        return running

    def __call__(self, values: Tensor, running: Tensor) -> Tensor:
        """The recursion of the module's docstring."""
        target, found = values[:, -1], list[Tensor]()
        for k in reversed(range(running.shape[1])):
            target = running[:, k] + (1 - self.lam) * values[:, k + 1] + self.lam * target
            found.insert(0, target)
        return torch.stack(found, 1)


TARGETS: dict[str, type[ValueTarget]] = {"terminal": TerminalReward, "lambda-return": LambdaReturn}
"""Every target by name."""
