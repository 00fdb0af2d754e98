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

The paper's figures name a variant "2nd ODE-AM-3" whose definition was not found. Three readings are options here:
a second-order solver (``sampler=Heun()``), the order of the running cost (``cost=PowerCost(q=...)``), and a
second-order value target (``target=GaussNewton()``). The first and the third are reconstructions.

Cost an iteration (Euler): N passes, K VJPs of the reference (the first step of the window needs its pass alone), one
VJP of reward and decoder, K trainable passes. Heun: 2N, 2K, 2K. Guidance doubles each. The reference's value in the
loss is the forward of its VJP.

Reference: Guo et al. 2026, arXiv:2605.06583 (equations derived again here); Domingo-Enrich et al. 2024,
arXiv:2409.08861 (lean adjoint).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.adjoint.base import AdjointBatch, regression
from girsanov.methods.adjoint.costs import Cost, QuadraticCost
from girsanov.methods.adjoint.targets import FirstOrder, Problem, TargetRule
from girsanov.methods.base import Chunk, State, Turn
from girsanov.methods.differentiable import require_gradient
from girsanov.methods.states import KeepsStates
from girsanov.models import Gated, ModelLike
from girsanov.policy import Policy
from girsanov.rewards.base import Reward
from girsanov.rollout import rollout
from girsanov.samplers.base import AffineSampler, Sampler
from girsanov.samplers.euler import Euler
from girsanov.types import Batch, Prompts


@dataclass(frozen=True, kw_only=True)
class ODEAdjointMatching(KeepsStates):
    """Deterministic adjoint matching, full or truncated to the last ``last`` steps.

    Attributes:
        reward: differentiable, larger is better.
        sampler: a deterministic single-step solver (Euler, Heun, DDIM).
        grid: times of the rollout.
        last: K, how many steps at the data end carry the adjoint and the loss; None is all.
        cost: running cost of the control.
        target: how a path's targets are found.
        gate: sample the reference outside the last K steps, in training and in deployment; one-stage solvers only.
    """

    reward: Reward
    sampler: Sampler = Euler()
    grid: Grid = field(default_factory=lambda: Grid.uniform(20))
    last: int | None = None
    cost: Cost = QuadraticCost()
    target: TargetRule = FirstOrder()
    gate: bool = False

    def __post_init__(self) -> None:
        require_gradient(self.reward, "ODE adjoint matching")
        if self.sampler.stochastic or not self.sampler.single_step:
            raise GirsanovError(
                f"ODE adjoint matching needs a deterministic single-step solver and {type(self.sampler).__name__} is "
                "not one: use Euler(), Heun() or GDDIM(eta=0)"
            )
        if self.last is not None and not 1 <= self.last <= len(self.grid):
            raise GirsanovError(f"last = {self.last} must lie between 1 and the {len(self.grid)} steps of the grid")
        if self.gate and self.first > 0 and not isinstance(self.sampler, AffineSampler):
            raise GirsanovError(
                f"a gate cannot cut {type(self.sampler).__name__} at its window: the step before it asks for a "
                "velocity at the window's first time too; use a one-stage solver (Euler, GDDIM(eta=0)) or gate=False"
            )
        self.target.check(self.cost)

    @property
    def first(self) -> int:
        """The first step of the window, N - K."""
        return 0 if self.last is None else len(self.grid) - self.last

    def deploy(self, policy: Policy, name: str = "current", strength: float = 1.0) -> ModelLike:
        """The tuned model; with ``gate``, the reference above the window's first time."""
        tuned = policy.view(name, "rollout", strength)
        if not self.gate:
            return tuned
        return Gated(tuned, policy.view("reference", "rollout"), float(self.grid.ts[self.first]))

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """One deterministic rollout and its targets."""
        with torch.no_grad():
            model = self.deploy(policy)
            x_T = self.begin(policy, model, self.grid, turn.noise(prompts.ids), prompts.cond)
            window = range(self.first, len(self.grid))
            path = rollout(model, self.sampler, self.grid, x_T, prompts.cond, keep=window)
        problem = Problem(policy, model, self.sampler, path, self.reward, self.cost, prompts)
        reward, targets = self.target.find(problem)
        return AdjointBatch(reward, prompts.cond, targets)

    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """One chunk a stage."""
        assert isinstance(batch, AdjointBatch)
        return regression(policy, batch)
