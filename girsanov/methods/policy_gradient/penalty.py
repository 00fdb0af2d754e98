r"""KL to the reference along the sampled path: two objectives with two different fixed points.

With ``KL_k(x)`` the divergence of step k's kernel from the reference's at state x, the *path KL* of a policy is
``sum_k E KL_k(x_k)``, where the states are the policy's own. Its gradient has two parts,

.. math:: \nabla \sum_k E[KL_k(x_k)] = \sum_k E[\nabla KL_k(x_k)]
    + \sum_k E\Big[\nabla \log \pi(x_{k+1} | x_k) \sum_{j > k} KL_j(x_j)\Big]

because a step also decides which states the later steps pay at. ``PathKL`` has both: the second one lowers the
advantage of step k by its KL-to-go (less the mean of the group's other samples, which changes no expectation). Its
maximiser of ``E r - beta KL`` is the optimal control of the chain. ``PerStepKL`` has the first part alone, as published
(Flow-GRPO, DPOK's bound): its fixed point solves another recursion, with states taken as given. Both limits are in
``girsanov.problems``.

The weight of a step multiplies its KL: ``StepLength()`` removes the ``1 / dt`` of the kernel's variance, which is what
flow_grpo's code computes.

References: Fan et al. 2023, arXiv:2305.16381, Eq. 8 (DPOK); Liu et al. 2025, arXiv:2505.05470.
"""

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.advantages.groups import Groups, leave_one_out
from girsanov.methods.base import Turn
from girsanov.methods.policy_gradient.batch import Scored
from girsanov.methods.policy_gradient.credit import StepWeight, Uniform
from girsanov.reductions import Reduction
from girsanov.types import Kernel, Step


@dataclass(frozen=True)
class Penalty(ABC):
    """A KL penalty of weight beta.

    Attributes:
        beta: weight of the KL.
        weight: factor of a step's KL.
        whole_path: whether the steps that are not trained must be priced too.
    """

    beta: float = 0.01
    weight: StepWeight = field(default_factory=Uniform)

    whole_path: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise GirsanovError(f"beta weighs a KL and must be positive, not {self.beta}: use kl=None for none")

    def cost(self, kernel: Kernel, step: Step, reference: Tensor, reduce: Reduction = "sum") -> tuple[Tensor, Tensor]:
        """``beta u_k KL_k`` and the bare ``KL_k`` of a step's kernel from the reference's mean, both [B]."""
        kl = kernel.kl(reference, reduce)
        return self.beta * self.weight(kernel, step).to(kl) * kl, kl

    @abstractmethod
    def charge(self, parts: list[Scored], group: Tensor, turn: Turn) -> list[Scored]:
        """The sampled steps with what they owe beyond their own KL taken off their advantages."""


@dataclass(frozen=True)
class PerStepKL(Penalty):
    """KL of every step at the states it met, as published."""

    def charge(self, parts: list[Scored], group: Tensor, turn: Turn) -> list[Scored]:
        """Nothing is owed."""
        return parts


@dataclass(frozen=True)
class PathKL(Penalty):
    """KL of the whole path: the steps also answer for the KL of the states they lead to."""

    whole_path: ClassVar[bool] = True

    def charge(self, parts: list[Scored], group: Tensor, turn: Turn) -> list[Scored]:
        """The KL-to-go, of true densities (summed over the data)."""
        costs = [self.cost(p.sampled, p.tr.step, p.reference)[0] for p in parts if p.reference is not None]
        owed = self.to_go(torch.stack(costs, 1), group, turn).unbind(1)
        return [
            dataclasses.replace(p, advantage=None if p.advantage is None else p.advantage - o)
            for p, o in zip(parts, owed, strict=True)
        ]

    def to_go(self, costs: Tensor, group: Tensor, turn: Turn) -> Tensor:
        """``sum_{j > k} cost_j`` [B, K], less its mean over the other samples of the group."""
        later = costs.flip(1).cumsum(1).flip(1) - costs
        groups = Groups.of(turn.reduce.gather(group.to(costs.device)))
        return turn.reduce.local(leave_one_out(turn.reduce.gather(later), groups))
