r"""Second-order targets for deterministic adjoint matching: one Gauss-Newton step of the control problem on each path.

``FirstOrder`` evaluates ``u = B^T grad r / (lam w)`` at the end point that was sampled, so its iteration ``x <- z + G
grad r(x) / lam`` diverges where ``G H / lam`` exceeds 1 in size. Here the end point moves along. With ``e = sum_i B_i
u_i`` the part of the end point that the current control made, ``G = sum_i B_i B_i^T / w_i`` and H the Hessian of r at
the sampled end point, the reward's gradient p at the *optimal* end point ``x_0 - e + G p / lam`` solves, to second
order,

.. math:: (I - H G / \lam)\, p = \nabla r(x_0) - H e, \qquad u_i = B_i^T p / (\lam w_i)

The matrix is self-adjoint in the inner product of G, and positive where r is concave: conjugate gradients from ``p =
grad r``, stopped at negative curvature. G is applied by one sweep back and one forth, H by a Hessian-vector product
of reward and decoder. The controls are then run from the window's start, and the targets stand on that corrected path.
For an affine velocity and a quadratic reward it is the optimal path: the iteration is at its fixed point (the proximal
map) after one step. With H = 0 (linear or piecewise linear rewards) the controls are those of ``FirstOrder``.

Cost beside the rollout, for n conjugate-gradient steps: (n + 2) K VJPs and as many JVPs of the reference, n + 1
Hessian-vector products of reward and decoder, 2K passes of the reference, K of the tuned model, K trainable passes.

This is a reconstruction of one reading of "2nd ODE-AM", not a published algorithm. The step is that of iterative
linear-quadratic control: Li & Todorov 2004, "Iterative linear quadratic regulator design".
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.adjoint.base import Target
from girsanov.methods.adjoint.conjugate_gradients import conjugate_gradients
from girsanov.methods.adjoint.costs import Cost, QuadraticCost
from girsanov.methods.adjoint.sweep import push
from girsanov.methods.adjoint.targets import Problem, TargetRule
from girsanov.methods.differentiable import scores
from girsanov.models import velocity
from girsanov.types import Stage, wide


@dataclass(frozen=True)
class GaussNewton(TargetRule):
    """Second-order targets for the quadratic cost.

    Attributes:
        steps: conjugate-gradient steps a path; as many as data dimensions is exact.
    """

    steps: int = 4

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise GirsanovError(
                f"Gauss-Newton targets take at least one step, not {self.steps}: FirstOrder() takes none"
            )

    def check(self, cost: Cost) -> None:
        """Refuses costs other than the quadratic one."""
        if not isinstance(cost, QuadraticCost):
            raise GirsanovError(
                f"Gauss-Newton targets are derived for a quadratic running cost, not {type(cost).__name__}: use "
                "cost=QuadraticCost(lam) or target=FirstOrder()"
            )

    def find(self, problem: Problem) -> tuple[Tensor, tuple[Target, ...]]:
        """Solves for the gradient at the optimal end point and runs its controls."""
        assert isinstance(problem.cost, QuadraticCost)
        lam = problem.cost.lam
        with torch.enable_grad():
            x = problem.path.x0.detach().requires_grad_(True)
            r = scores(problem.reward, problem.model, x, problem.prompts)
            (gradient,) = torch.autograd.grad(r.sum(), x, create_graph=True)

        def hessian(v: Tensor) -> Tensor:
            if not gradient.requires_grad:
                return torch.zeros_like(v)
            return torch.autograd.grad(gradient, x, v, retain_graph=True)[0]

        def gramian(p: Tensor) -> Tensor:
            return sweep_forth(problem, sweep_back(problem, p))

        p = gradient.detach()
        made = sweep_forth(problem, current_controls(problem))
        residual = hessian(gramian(p) / lam - made)
        p = conjugate_gradients(lambda d, Gd: d - hessian(Gd) / lam, gramian, p, residual, self.steps)
        controls = [[u / lam for u in step] for step in sweep_back(problem, p)]
        return r.detach(), corrected_path(problem, controls)


def sweep_back(problem: Problem, p: Tensor) -> list[list[Tensor]]:
    """``B_i^T p / w_i`` of every stage of every step, [B, *D] each."""
    out: list[list[Tensor]] = []
    for tr in reversed(problem.path.transitions):
        p, g, _ = problem.pull(tr, p)
        out.insert(0, [gi / float(s.weight) for gi, s in zip(g, tr.stages, strict=True)])
    return out


def sweep_forth(problem: Problem, controls: list[list[Tensor]]) -> Tensor:
    """``sum_i B_i u_i`` [B, *D]: what the controls add to the end point, to first order."""
    shift = torch.zeros_like(problem.path.x0)
    for tr, u in zip(problem.path.transitions, controls, strict=True):
        shift = push(problem.sampler, problem.reference, tr, shift, u, problem.cond)
    return shift


@torch.no_grad()
def current_controls(problem: Problem) -> list[list[Tensor]]:
    """``v_theta - v_ref`` at every stage of the path."""

    def control(s: Stage) -> Tensor:
        x = wide(s.x)
        tuned = velocity(problem.model, x, s.t, problem.cond)
        return tuned - velocity(problem.reference, x, s.t, problem.cond)

    return [[control(s) for s in tr.stages] for tr in problem.path.transitions]


@torch.no_grad()
def corrected_path(problem: Problem, controls: list[list[Tensor]]) -> tuple[Target, ...]:
    """The reference run from the window's start under given controls: one target a stage."""
    x, targets = problem.path.transitions[0].asked, list[Target]()
    for tr, us in zip(problem.path.transitions, controls, strict=True):
        dialogue, stages, velocities = (
            problem.sampler.stages(problem.reference, x, tr.step),
            list[Stage](),
            list[Tensor](),
        )
        stage = next(dialogue)
        for u in us:
            v = velocity(problem.reference, stage.x, stage.t, problem.cond)
            stages, velocities = [*stages, stage], [*velocities, v]
            try:
                stage = dialogue.send(v + u)
            except StopIteration as end:
                x = end.value
        targets += problem.targets(tuple(stages), velocities, us)
    return tuple(targets)
