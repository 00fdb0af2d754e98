r"""Deterministic adjoint matching (ODE-AM): tuning a flow model as a deterministic control problem over velocities.

Time runs from noise (t = 1) to data (t = 0). With ``v = v_ref + u`` and a running cost L,

.. math:: \min_u E\Big[\int_0^1 L(u)\,dt - r(x_0)\Big]

Pontryagin's costate is the *lean* adjoint, exact because nothing is random: it starts at ``a = -grad r(x_0)`` and is
carried towards the noise by the Jacobian of the reference alone. Discretely, one step of a solver whose velocity
stages ``v_i`` have weights ``w_i`` (Euler: one of weight h; Heun: two of h/2) is ``x_s = F(x_t, v_1, ...)``. With
the costate ``a_s`` *after* the step (pairing with the one before it is an O(h) error),

.. math:: g_i = \Big(\frac{\partial x_s}{\partial v_i}\Big)^T a_s, \qquad u_i^* = \nabla L^*(-g_i / w_i), \qquad
          a_t = \Big(\frac{\partial x_s}{\partial x_t}\Big)^T a_s

all from one VJP of the reference a stage, at the points that the rollout visited. For Euler ``g = -h a_s``, so
``u^* = grad L^*(a_s)``; for Heun the targets are ``grad L^*((I - h J)^T a_s)`` and ``grad L^*(a_s)``. The loss is
the mean over the stages of the last K steps of ``|v_theta - v_ref - u^*|^2 / d``.

Truncation to the last K steps would be a smaller step size (``1/lam_eff = G(tau) / (G(0) lam)``) if each time had
its own control. A network shared over time leaks the control into all steps; ``gate`` cuts the leak: outside the
window the reference is sampled.

Cost an iteration (Euler): N passes, K VJPs of the reference, one VJP of reward and decoder, K trainable passes.
Heun: 2N, 2K, 2K.

Reference: arXiv:2605.06583, 2026 (its equations were derived again here); Domingo-Enrich et al. 2024,
arXiv:2409.08861 (lean adjoint).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.adjoint.base import (
    AdjointBatch,
    Target,
    guided_alike,
    regression,
    require_gradient,
    reward_gradient,
)
from girsanov.methods.adjoint.costs import Cost, QuadraticCost
from girsanov.methods.base import Chunk, Method, State, Turn
from girsanov.models import Gated, ModelLike, velocity
from girsanov.policy import Policy
from girsanov.rewards.base import Reward
from girsanov.rollout import rollout
from girsanov.samplers.base import Sampler
from girsanov.samplers.euler import Euler
from girsanov.types import Batch, Cond, Prompts, Transition


@dataclass(frozen=True, kw_only=True)
class ODEAdjointMatching(Method):
    """Deterministic adjoint matching, full or truncated to the last ``last`` steps.

    Attributes:
        reward: differentiable, larger is better.
        sampler: a deterministic single-step solver (Euler, Heun, DDIM).
        grid: times of the rollout.
        last: K, how many steps at the data end carry the adjoint and the loss; None is all.
        cost: running cost of the control.
        gate: sample the reference outside the last K steps, in training and in deployment.
    """

    reward: Reward
    sampler: Sampler = Euler()
    grid: Grid = field(default_factory=lambda: Grid.uniform(20))
    last: int | None = None
    cost: Cost = QuadraticCost()
    gate: bool = False

    def __post_init__(self) -> None:
        require_gradient(self.reward, "ODE adjoint matching")
        if self.sampler.stochastic or not self.sampler.single_step:
            raise GirsanovError(
                f"ODE adjoint matching needs a deterministic single-step solver and {type(self.sampler).__name__} is not "
                "one: use Euler(), Heun() or GDDIM(eta=0)"
            )
        if self.last is not None and not 1 <= self.last <= len(self.grid):
            raise GirsanovError(f"last = {self.last} must lie between 1 and the {len(self.grid)} steps of the grid")

    @property
    def window(self) -> int:
        """K."""
        return len(self.grid) if self.last is None else self.last

    def deploy(self, policy: Policy, name: str = "current", strength: float = 1.0) -> ModelLike:
        """The tuned model; with ``gate``, the reference above the window's first time."""
        tuned = policy.view(name, "rollout", strength)
        if not self.gate:
            return tuned
        return Gated(tuned, policy.view("reference", "rollout"), float(self.grid.ts[len(self.grid) - self.window]))

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """One deterministic rollout and its adjoint."""
        first = len(self.grid) - self.window
        with torch.no_grad():
            model = self.deploy(policy)
            x_T = model.process.prior(turn.noise(prompts.ids).normal(policy.model.shape, policy.dtype))
            path = rollout(model, self.sampler, self.grid, x_T, prompts.cond, keep=range(first, len(self.grid)))
        reward, gradient = reward_gradient(self.reward, model, path.x0, prompts)
        costate, targets = -gradient, list[Target]()
        for tr in reversed(path.transitions):
            costate, found = self.adjoint_step(policy, tr, costate, prompts.cond)
            targets = found + targets
        return AdjointBatch(reward, prompts.cond, tuple(targets))

    def adjoint_step(self, policy: Policy, tr: Transition, costate: Tensor, cond: Cond) -> tuple[Tensor, list[Target]]:
        """The costate before a step and the targets of its stages; one VJP of the reference a stage."""
        reference = policy.view("reference", "adjoint")
        with torch.enable_grad():
            x = tr.x_t.detach().requires_grad_(True)
            dialogue, probes, velocities = self.sampler.stages(reference, x, tr.step), list[Tensor](), list[Tensor]()
            asked = next(dialogue)
            for visited in tr.stages:
                # the value is where the tuned rollout was, the Jacobian is the solver's
                point = asked.x + (visited.x - asked.x).detach()
                v = velocity(reference, point, visited.t, cond)
                probe = torch.zeros_like(v, requires_grad=True)
                velocities, probes = [*velocities, v.detach()], [*probes, probe]
                try:
                    asked = dialogue.send(v + probe)
                except StopIteration as end:
                    before, *g = torch.autograd.grad(end.value, [x, *probes], costate)
        if not guided_alike(policy):
            plain = policy.view("reference", "train")
            with torch.no_grad():
                velocities = [velocity(plain, s.x, s.t, cond) for s in tr.stages]
        controls = [self.cost.control(-gi / float(s.weight)) for gi, s in zip(g, tr.stages, strict=True)]
        return before, [Target(s.x, s.t, v, u) for s, v, u in zip(tr.stages, velocities, controls, strict=True)]

    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """One chunk a stage."""
        assert isinstance(batch, AdjointBatch)
        return regression(policy, batch)
