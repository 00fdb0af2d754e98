r"""From a path to the regression targets of deterministic adjoint matching.

``FirstOrder`` is the published rule: the costate starts at ``a = -grad r(x_0)`` of the end point that was sampled, and

.. math:: u_i^* = \nabla L^*(-B_i^T a_s / w_i), \qquad a_t = A^T a_s

in the notation of ``sweep.py``, with w the stages' weights. ``gauss_newton.py`` has the second-order rule.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.methods.adjoint.base import Target, guided_alike
from girsanov.methods.adjoint.costs import Cost
from girsanov.methods.adjoint.sweep import pull
from girsanov.methods.differentiable import reward_gradient
from girsanov.models import ModelLike, velocity
from girsanov.policy import Policy
from girsanov.rewards.base import Reward
from girsanov.samplers.base import Sampler
from girsanov.types import Cond, Prompts, Stage, Trajectory, Transition, wide


@dataclass(frozen=True)
class Problem:
    """A sampled path and what its control is to optimise.

    Attributes:
        policy: views of the reference and of the tuned model.
        model: the model that was sampled.
        sampler: the deterministic solver.
        path: the kept transitions are the controlled ones.
        reward: of the end point.
        cost: of the control.
        prompts: the requests.
    """

    policy: Policy
    model: ModelLike
    sampler: Sampler
    path: Trajectory
    reward: Reward
    cost: Cost
    prompts: Prompts

    @property
    def cond(self) -> Cond:
        """The conditions of the batch."""
        return self.prompts.cond

    @property
    def reference(self) -> ModelLike:
        """The model whose Jacobian carries the costate."""
        return self.policy.view("reference", "adjoint")

    def pull(self, tr: Transition, costate: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """``A^T a``, every ``B_i^T a``, and the reference's velocities; one VJP of the reference a stage.

        At the window's first step nothing asks for ``A^T a``: there a comes back as it went in.
        """
        carry = tr is not self.path.transitions[0]
        before, g, velocities = pull(self.sampler, self.reference, tr, costate, self.cond, carry)
        return costate if before is None else before, g, velocities

    def targets(self, stages: tuple[Stage, ...], velocities: list[Tensor], controls: list[Tensor]) -> list[Target]:
        """The regression at stages; one more pass a stage if adjoint and loss are guided differently."""
        if not guided_alike(self.policy):
            plain = self.policy.view("reference", "train")
            with torch.no_grad():
                velocities = [velocity(plain, wide(s.x), s.t, self.cond) for s in stages]
        return [Target(s.x, s.t, v, u) for s, v, u in zip(stages, velocities, controls, strict=True)]


class TargetRule(ABC):
    """How a path's targets are found."""

    @abstractmethod
    def check(self, cost: Cost) -> None:
        """Raises GirsanovError if the rule is not derived for this running cost."""

    @abstractmethod
    def find(self, problem: Problem) -> tuple[Tensor, tuple[Target, ...]]:
        """Rewards of the path's end points [B], and one target a stage of the window."""


@dataclass(frozen=True)
class FirstOrder(TargetRule):
    """The costate of the end point that was sampled; K VJPs of the reference and one of the reward."""

    def check(self, cost: Cost) -> None:
        """Any convex cost will do."""

    def find(self, problem: Problem) -> tuple[Tensor, tuple[Target, ...]]:
        """One sweep from the data end."""
        reward, gradient = reward_gradient(problem.reward, problem.model, problem.path.x0, problem.prompts)
        costate, targets = -gradient, list[Target]()
        for tr in reversed(problem.path.transitions):
            costate, g, velocities = problem.pull(tr, costate)
            controls = [problem.cost.control(-gi / float(s.weight)) for gi, s in zip(g, tr.stages, strict=True)]
            targets = problem.targets(tr.stages, velocities, controls) + targets
        return reward, tuple(targets)
