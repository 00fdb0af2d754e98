r"""Adjoint matching (AM): tuning to the tilted law ``p_ref exp(r / beta)`` by regression, with memoryless noise.

A step of a stochastic sampler is ``x_s ~ N(mean(x_t, v), std^2 I)``. Tuning it is a control problem with the path KL as
cost: a shift ``m`` of the mean costs ``|m|^2 / (2 std^2)``, and

.. math:: \min E\Big[ \sum_{steps} \frac{\|m\|^2}{2\,std^2} - \frac{r(x_0)}{\beta} \Big]
          \quad\Rightarrow\quad m^* = -std^2\, \nabla J_s(x_s)

with J_s the cost to go *after* the step. The *lean* adjoint estimates its gradient on every trajectory of the current
policy, with the Jacobians of the reference alone,

.. math:: a_0 = -\nabla r(x_0) / \beta, \qquad a_t = \Big(\frac{\partial mean_{ref}}{\partial x_t}\Big)^T a_s

and regression takes the conditional mean. Only the optimal control is a fixed point. In velocity, with ``gain = d
mean / d v``: target ``u* = -std^2 a_s / gain`` and weight ``(gain / std)^2``, so a term of the loss is ``|gain (v -
v_ref) / std + std a_s|^2 / d``. Pairing the step with ``a_t`` instead of ``a_s`` is an O(h) error.

On a rectified flow with ``MemorylessFlow`` the term is h times the paper's ``|(2 / sigma) dv + sigma a|^2`` (algorithm
1); with GDDIM(1) on a variance-preserving process it is the DDPM form (algorithm 2), with ``c_1 = gain / std`` and
``c_2 = std`` of the post-step index. A noiseless step (the last one of GDDIM) carries the adjoint and has no loss.

Only the memoryless noise (eta = 1) makes start and end independent, which removes the bias of the initial value and
lets other samplers use the tuned velocity.

Cost an iteration: N passes, one VJP of the reference a step (the steps before the first one with a loss are left out,
and that one takes a pass alone), one VJP of reward and decoder, as many trainable passes as steps with a loss. The
reference's value in the loss is the forward of its VJP. Guidance is that of the policy's uses: rollout, adjoint, train.

Reference: Domingo-Enrich et al. 2024, arXiv:2409.08861, algorithms 1 and 2, appendix G (options).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.adjoint.base import AdjointBatch, Target, guided_alike, regression
from girsanov.methods.base import Chunk, State, Turn
from girsanov.methods.differentiable import require_gradient, reward_gradient
from girsanov.methods.policy_gradient.steps import AllSteps, Steps
from girsanov.methods.states import KeepsStates
from girsanov.models import velocity
from girsanov.policy import Policy
from girsanov.predictions import add_scaled, convert
from girsanov.rewards.base import Reward
from girsanov.rollout import rollout
from girsanov.samplers.base import AffineSampler
from girsanov.samplers.gddim import GDDIM
from girsanov.types import Batch, Cond, Prompts, Transition


@dataclass(frozen=True, kw_only=True)
class AdjointMatching(KeepsStates):
    """Adjoint matching for any one-stage stochastic sampler.

    Attributes:
        reward: differentiable, larger is better.
        beta: weight of the KL; the paper's lambda is 1 / beta.
        sampler: a one-stage sampler with memoryless noise.
        grid: times of the rollout.
        steps: which of the steps that draw noise carry a loss; ``Subset()`` is the paper's choice.
        noiseless_last: take the reward's gradient at ``x + (s - t) v_ref`` of the last step instead of the sampled end.
        clip: clips a term at ``clip / beta^2`` in the paper's unit, the squared norm of the control error; 1.6 there.
        any_noise: allow noise that is not memoryless; the end point is then not the tilted law.
    """

    reward: Reward
    beta: float = 1.0
    sampler: AffineSampler = GDDIM(1.0)
    grid: Grid = field(default_factory=lambda: Grid.uniform(40))
    steps: Steps = AllSteps()
    noiseless_last: bool = False
    clip: float | None = None
    any_noise: bool = False

    def __post_init__(self) -> None:
        require_gradient(self.reward, "adjoint matching")
        name = type(self.sampler).__name__
        if not (isinstance(self.sampler, AffineSampler) and self.sampler.stochastic and self.sampler.single_step):
            raise GirsanovError(
                f"adjoint matching needs a stochastic sampler of one stage and one step and {name} is not one: use "
                "GDDIM(eta=1.0), or ODE adjoint matching (ode-am) for deterministic solvers"
            )
        if not (self.sampler.memoryless or self.any_noise):
            raise GirsanovError(
                f"adjoint matching reaches the tilted law with memoryless noise alone, and {self.sampler} has another: "
                "use GDDIM(eta=1.0), or any_noise=True if another end point is wanted"
            )
        if not self.beta > 0:
            raise GirsanovError(f"beta weighs the KL and must be positive, not {self.beta}")
        if self.clip is not None and not self.clip > 0:
            raise GirsanovError(f"clip must be positive, not {self.clip}: None clips nothing")

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """One stochastic rollout and its lean adjoint."""
        n, process = len(self.grid), policy.model.process
        noisy = [step.i for step in self.grid if bool(self.sampler.coefficients(process, step)[2] > 0)]
        if not noisy:
            raise GirsanovError("no step draws noise: take more steps (the last step to t = 0 may be noiseless)")
        chosen = [noisy[k] for k in self.steps(len(noisy), turn)]
        with torch.no_grad():
            model, noise = policy.view("current", "rollout"), turn.noise(prompts.ids)
            x_T = self.begin(policy, model, self.grid, noise, prompts.cond)
            kept = range(min(chosen), n)
            path = rollout(model, self.sampler, self.grid, x_T, prompts.cond, noise=noise, keep=kept)
        end, steps = path.x0, list(path.transitions)
        del path  # a step's mean is freed as soon as the step is done
        costate, reward, targets = torch.empty(0), torch.empty(0), list[Target]()
        while steps:
            tr = steps.pop()
            carry = bool(steps)
            x, mean, gain, v = self.linearise(policy, tr, prompts.cond, carry)
            if tr.step.i == n - 1:
                end = add_scaled(tr.asked, v, tr.step.h) if self.noiseless_last else end
                reward, gradient = reward_gradient(self.reward, model, end, prompts)
                costate = -gradient / self.beta
            if tr.step.i in chosen:
                targets.insert(0, self.target(policy, tr, v, gain, costate, prompts.cond))
            if carry:
                (costate,) = torch.autograd.grad(mean, x, costate)
        return AdjointBatch(reward, prompts.cond, tuple(targets))

    def linearise(
        self, policy: Policy, tr: Transition, cond: Cond, carry: bool
    ) -> tuple[Tensor, Tensor, float, Tensor]:
        """The state with (if carried) a graph to the reference's mean, ``d mean / d v``, the reference's velocity."""
        model = policy.view("reference", "adjoint")
        with torch.set_grad_enabled(carry):
            x = tr.asked.detach().requires_grad_(carry)
            kernel, _ = self.sampler.kernel(model, x, tr.step, cond)
        assert kernel.gain is not None and kernel.raw is not None
        v = convert(kernel.raw[1].detach(), tr.asked, model.process(tr.step.t), model.prediction, "velocity")
        return x, kernel.mean, float(kernel.gain), v

    def target(self, policy: Policy, tr: Transition, v: Tensor, gain: float, costate: Tensor, cond: Cond) -> Target:
        """``u* = -std^2 a_s / gain`` with weight ``(gain / std)^2``, from the costate after the step."""
        if not guided_alike(policy):
            with torch.no_grad():
                v = velocity(policy.view("reference", "train"), tr.asked, tr.step.t, cond)
        std = float(tr.std)
        limit = None if self.clip is None else self.clip / self.beta**2 * abs(float(tr.step.h))
        return Target(tr.x_t, tr.step.t, v, costate * (-(std**2) / gain), (gain / std) ** 2, limit)

    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """One chunk a step that has a loss."""
        assert isinstance(batch, AdjointBatch)
        return regression(policy, batch)
