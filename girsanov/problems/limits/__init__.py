r"""Where each method ends, on Gaussian data with a quadratic reward and on the grid it trains on.

``limit(method, problem)`` is its fixed point there, not the law it aims at: on few steps the two differ by more than
training does. ``aim(method, problem)`` is what the limit tends to as the steps shrink.

=====================  ==========================================================  ====================================
method                 limit                                                       aim
=====================  ==========================================================  ====================================
adjoint matching       lean-adjoint recursion on the sampler's kernels             tilted law
ODE adjoint matching   proximal map of the solver                                  proximal map of the flow
policy gradient        path-KL or per-step recursion, by its penalty               tilted law (path KL)
forward process        affine velocity that answers its own samples                tilted law (linear reward)
score as action        path-KL or per-step recursion, proximal map (energy)        tilted law, proximal map
Diffusion-DPO          one shift of the prediction a time, sampled on the grid     tilted law (tilt weight, round data)
RankDPO                the same, for the likelihood of rankings                    the same
PRDP                   path-KL recursion, for a linear reward                      tilted law
reward-weighted        the reference's samples, tilted                             tilted law
direct gradients       none: the reward grows without bound                        none
=====================  ==========================================================  ====================================

A family's file derives its limits and says when there is none; advantages in units of a std change beta (``scales``).
A method whose composition has no known fixed point gives None, and is scored on the reward-KL frontier.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from girsanov.grids import Grid
from girsanov.methods.adjoint.matching import AdjointMatching
from girsanov.methods.adjoint.ode import ODEAdjointMatching
from girsanov.methods.base import Method
from girsanov.methods.continuous.ctrl import CTRL
from girsanov.methods.forward.base import ForwardMethod
from girsanov.methods.policy_gradient.clipped import ClippedPG
from girsanov.methods.preference.diffusion_dpo import DiffusionDPO
from girsanov.methods.preference.prdp import PRDP
from girsanov.methods.preference.rank_dpo import RankDPO
from girsanov.methods.preference.rwr import RewardWeighted
from girsanov.problems.laws import Gaussian
from girsanov.problems.limits.adjoint import adjoint_beta, adjoint_limit, proximal_aim, proximal_limit
from girsanov.problems.limits.continuous import continuous_aim, continuous_limit
from girsanov.problems.limits.forward import forward_beta, forward_limit
from girsanov.problems.limits.policy_gradient import policy_gradient_beta, policy_gradient_limit
from girsanov.problems.limits.preference import (
    dpo_beta,
    dpo_limit,
    prdp_beta,
    prdp_limit,
    weighted_beta,
    weighted_limit,
)
from girsanov.problems.limits.problem import GaussianProblem as GaussianProblem
from girsanov.problems.recursions import Limit
from girsanov.problems.rewards import tilt

Find = Callable[[Any, GaussianProblem], Limit | None]
Aim = Callable[[Any, GaussianProblem], Gaussian | None]


def tilted(beta_of: Callable[[Any, GaussianProblem], float | None]) -> Aim:
    """The law tilted with the beta that a family's function gives; None where it gives none."""

    def aim(method: Any, problem: GaussianProblem) -> Gaussian | None:
        beta = beta_of(method, problem)
        if beta is None:
            return None
        target = tilt(problem.law, problem.reward, beta)
        assert isinstance(target, Gaussian)
        return target

    return aim


LIMITS: dict[type, tuple[Find, Aim]] = {
    AdjointMatching: (adjoint_limit, tilted(adjoint_beta)),
    ODEAdjointMatching: (proximal_limit, proximal_aim),
    ClippedPG: (policy_gradient_limit, tilted(policy_gradient_beta)),
    CTRL: (continuous_limit, continuous_aim),
    ForwardMethod: (forward_limit, tilted(forward_beta)),
    DiffusionDPO: (dpo_limit, tilted(dpo_beta)),
    RankDPO: (dpo_limit, tilted(dpo_beta)),
    PRDP: (prdp_limit, tilted(prdp_beta)),
    RewardWeighted: (weighted_limit, tilted(weighted_beta)),
}
"""Fixed point and aim of a class of methods; a class that is not here has none."""


def _known(method: Method) -> tuple[Find, Aim] | None:
    return next((LIMITS[c] for c in type(method).__mro__ if c in LIMITS), None)


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
    known = _known(method)
    return None if known is None else known[0](method, problem)


def aim(method: Method, problem: GaussianProblem) -> Gaussian | None:
    """The law that ``limit`` tends to as the steps shrink, where it is known in closed form."""
    known = _known(method)
    return None if known is None or limit(method, problem) is None else known[1](method, problem)
