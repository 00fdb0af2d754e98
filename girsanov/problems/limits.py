r"""Where each method ends, on Gaussian data with a quadratic reward and on the grid it trains on.

``limit(method, problem)`` is its fixed point there, not the law it aims at: on few steps the two differ by more than
training does. ``aim(method, problem)`` is what the limit tends to as the steps shrink.

=====================  ==========================================================  ====================================
method                 limit                                                       aim
=====================  ==========================================================  ====================================
adjoint matching       lean-adjoint recursion on the sampler's kernels             tilted law
ODE adjoint matching   proximal map of the solver                                  proximal map of the flow
policy gradient        path-KL or per-step recursion, by its penalty               tilted law (path KL)
DiffusionNFT           exact velocity of the tilted law, sampled on the grid       tilted law
Diffusion-DPO          one shift of the prediction a time, sampled on the grid     tilted law (tilt weight, round data)
direct gradients       none: the reward grows without bound                        none
=====================  ==========================================================  ====================================

The forward-process and preference rows hold for a linear reward only. A method whose composition has no known fixed
point (a clipped loss, normalised advantages without a closed scale, no penalty) gives None, and is scored on the
reward-KL frontier.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.adjoint.costs import QuadraticCost
from girsanov.methods.adjoint.matching import AdjointMatching
from girsanov.methods.adjoint.ode import ODEAdjointMatching
from girsanov.methods.advantages.base import Advantage, LeaveOneOut
from girsanov.methods.base import Method
from girsanov.methods.forward.errors import VelocityError
from girsanov.methods.forward.nft import DiffusionNFT
from girsanov.methods.policy_gradient.clipped import ClippedPG
from girsanov.methods.policy_gradient.credit import PlainRatio, Uniform
from girsanov.methods.policy_gradient.penalty import PathKL, Penalty, PerStepKL
from girsanov.methods.policy_gradient.schedules import Unchanged
from girsanov.methods.policy_gradient.steps import AllSteps
from girsanov.methods.preference.diffusion_dpo import DiffusionDPO
from girsanov.methods.preference.weights import PairWeight, TiltWeight
from girsanov.models import Model
from girsanov.predictions import Prediction, row
from girsanov.problems.laws import Gaussian
from girsanov.problems.moments import affine_kernels, end_law, prior_moments
from girsanov.problems.proximal import Flow, discrete_flow
from girsanov.problems.recursions import Kernels, Limit, lean_adjoint_limit, path_kl_limit, per_step_kl_limit
from girsanov.problems.rewards import QuadraticReward, tilt
from girsanov.processes import Process, RectifiedFlow
from girsanov.samplers.base import Sampler
from girsanov.samplers.euler import Euler
from girsanov.types import Cond


@dataclass(frozen=True)
class GaussianProblem:
    """Gaussian data, a quadratic reward, and how the network is read.

    Attributes:
        law: the data.
        reward: the pay-off.
        process: the noising process.
        prediction: what the network predicts.
        sampler, grid: how the methods that train no chain are sampled.
        bt_temperature: of the annotator who labels preference pairs.
    """

    law: Gaussian
    reward: QuadraticReward
    process: Process = RectifiedFlow()
    prediction: Prediction = "velocity"
    sampler: Sampler = Euler()
    grid: Grid = dataclasses.field(default_factory=lambda: Grid.uniform(20))
    bt_temperature: float = 1.0

    @property
    def model(self) -> Model:
        """The exact model before tuning."""
        return self.law.model(self.process, self.prediction)

    @property
    def linear(self) -> bool:
        """Whether the reward is linear."""
        return not bool(self.reward.A.any())

    def on(self, grid: Grid) -> "GaussianProblem":
        """The same problem on another grid."""
        return dataclasses.replace(self, grid=grid)

    def chain(self, sampler: Sampler, grid: Grid) -> tuple[Kernels, tuple[Tensor, Tensor]]:
        """The untuned chain and the moments of its start."""
        return affine_kernels(self.model, sampler, grid), prior_moments(self.model)


def shifted_model(model: Model, shift: Callable[[Tensor], Tensor]) -> Model:
    """The model whose raw prediction at time t (float64 []) is moved by ``shift(t)`` [d]."""

    def net(x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        moves = {float(v): shift(v) for v in t.double().unique()}
        move = torch.stack([moves[float(v)] for v in t.double()])
        return model.net(x, t, cond) + move.to(x.dtype).view_as(x)

    return dataclasses.replace(model, net=net)


def dpo_shift(problem: GaussianProblem, weight: PairWeight) -> Callable[[Tensor], Tensor]:
    r"""Population optimum of Diffusion-DPO at time t for Bradley-Terry labels of ``b^T x / T``: a shift of p.

    With shared noise the reference's errors of the two images differ by ``c sigma^2 S^{-1} (x_w - x_l)``, ``S = alpha^2
    C + sigma^2``, where ``p - p_ref = c (x_0 - x_0_ref)`` at fixed x_t. A shift delta has the logit ``B delta^T`` times
    that, so ``delta = S b / (T B c sigma^2)`` gives the true odds of every pair, which no function betters.
    """
    if not problem.linear:
        raise GirsanovError("the optimum of Diffusion-DPO is known for a linear reward alone: give LinearReward(b)")

    def shift(t: Tensor) -> Tensor:
        s = problem.process(t)
        a, b = row(s, problem.prediction)
        c = a - b * s.alpha / s.sigma
        S = s.alpha**2 * problem.law.cov + s.sigma**2 * torch.eye(problem.law.d, dtype=torch.float64)
        B = weight(s, problem.prediction, problem.law.d)
        return S @ problem.reward.b / (problem.bt_temperature * B * c * s.sigma**2)

    return shift


def advantage_scale(advantage: Advantage) -> float | None:
    """``d A / d r`` of an advantage in the mean, where it is a constant (a std would make it move with the policy)."""
    return 1.0 if isinstance(advantage, LeaveOneOut) else None


def _adjoint(method: AdjointMatching, problem: GaussianProblem) -> Limit | None:
    if method.clip is not None:
        return None
    kernels, start = problem.chain(method.sampler, method.grid)
    seen = None
    if method.noiseless_last:
        seen = affine_kernels(problem.model, Euler(), Grid(method.grid.ts[-2:]))[0]
    return lean_adjoint_limit(kernels, start, problem.reward, method.beta, seen)


def _proximal(method: ODEAdjointMatching, problem: GaussianProblem) -> Limit | None:
    if not isinstance(method.cost, QuadraticCost):
        return None
    flow = discrete_flow(problem.model, method.sampler, method.grid, method.last)
    return Limit(flow.law(problem.reward, method.cost.lam))


def _policy_gradient(method: ClippedPG, problem: GaussianProblem) -> Limit | None:
    scale, penalty = advantage_scale(method.advantage), method.kl
    every = method.steps == AllSteps() and isinstance(method.schedule, Unchanged)
    plain = every and isinstance(method.ratio, PlainRatio) and method.correct is None
    if penalty is None or scale is None or not plain or not isinstance(penalty.weight, Uniform):
        return None
    recursion = PENALTIES.get(type(penalty))
    if recursion is None:
        return None
    kernels, start = problem.chain(method.sampler, method.grid)
    return recursion(kernels, start, problem.reward, penalty.beta / scale)


def _nft(method: DiffusionNFT, problem: GaussianProblem) -> Limit | None:
    """The tilted law, where it attracts.

    Near the data ``x_t`` shows the advantage A, and moving the velocity by ``w phi(x_t)`` changes the gradient by
    ``E[phi phi^T (kappa + A)] w``. For ``phi = (1, A / std A)`` this has the eigenvalues ``kappa +- std A``: with kappa
    below the spread of the advantages, samples worse than average push harder than the reference pulls, and training
    leaves the fixed point.
    """
    scale = advantage_scale(method.advantage)
    if not problem.linear or scale is None or not isinstance(method.error, VelocityError):
        return None
    if method.kappa <= scale * float((problem.reward.b @ problem.law.cov @ problem.reward.b).sqrt()):
        return None
    target = tilt(problem.law, problem.reward, method.kappa / scale)
    return Limit(end_law(target.model(problem.process, problem.prediction), method.sampler, method.grid))


def _dpo(method: DiffusionDPO, problem: GaussianProblem) -> Limit | None:
    if not problem.linear:
        return None
    shift = dpo_shift(problem, method.weight)
    # At the two ends one image says nothing of the other's reward, and the weight's cap rules: a network that was
    # trained between them is taken to keep its value there.
    model = shifted_model(problem.model, lambda t: shift(t.clamp(2e-3, 1 - 2e-3)))
    return Limit(end_law(model, problem.sampler, problem.grid))


PENALTIES: dict[type[Penalty], Callable[..., Limit]] = {PathKL: path_kl_limit, PerStepKL: per_step_kl_limit}
"""The recursion that a policy gradient's penalty leads to."""

LIMITS: dict[type[Method], Callable[[Any, GaussianProblem], Limit | None]] = {
    AdjointMatching: _adjoint,
    ODEAdjointMatching: _proximal,
    ClippedPG: _policy_gradient,
    DiffusionNFT: _nft,
    DiffusionDPO: _dpo,
}
"""The fixed point of a class of methods; a class that is not here has none."""


def limit(method: Method, problem: GaussianProblem, grid: Grid | None = None) -> Limit | None:
    """The method's fixed point on a problem, or None where there is none (or none is known).

    Args:
        method: with its own sampler and, for the chain it trains, its own grid.
        problem: data, reward, process. The method's own reward is not asked: the problem's is taken.
        grid: other times for method and problem.
    """
    if grid is not None:
        problem = problem.on(grid)
        method = dataclasses.replace(method, grid=grid)  # type: ignore[type-var]
    find = next((LIMITS[c] for c in type(method).__mro__ if c in LIMITS), None)
    return None if find is None else find(method, problem)


def aim(method: Method, problem: GaussianProblem) -> Gaussian | None:
    """The law that ``limit`` tends to as the steps shrink, where it is known in closed form."""
    if limit(method, problem) is None:
        return None
    if isinstance(method, ODEAdjointMatching) and isinstance(method.cost, QuadraticCost):
        first = 1.0 if method.last is None else float(method.grid.ts[len(method.grid) - method.last])
        return Flow(problem.law, problem.process).law_of(problem.reward, method.cost.lam, first)
    beta = _tilt_weight(method, problem)
    if beta is None:
        return None
    target = tilt(problem.law, problem.reward, beta)
    assert isinstance(target, Gaussian)
    return target


def _tilt_weight(method: Method, problem: GaussianProblem) -> float | None:
    """The beta of the tilted law a method aims at, or None if it aims elsewhere."""
    if isinstance(method, AdjointMatching):
        return method.beta if method.sampler.memoryless else None
    if isinstance(method, ClippedPG):
        path = isinstance(method.kl, PathKL) or problem.linear
        return method.kl.beta if method.kl is not None and path and method.sampler.memoryless else None
    if isinstance(method, DiffusionNFT):
        return method.kappa
    if isinstance(method, DiffusionDPO) and isinstance(method.weight, TiltWeight):
        ball = torch.allclose(problem.law.cov, method.weight.std**2 * torch.eye(problem.law.d, dtype=torch.float64))
        return method.weight.beta * problem.bt_temperature if ball else None
    return None
