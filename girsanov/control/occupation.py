r"""The discounted occupation time of a policy, and how to sample it.

.. math:: d(dx) = \int_0^\infty e^{-\beta t} P(X_t \in dx)\, dt, \qquad
    d_h = h \sum_{k \ge 0} \delta^k P(X_{kh} \in dx), \quad \delta = e^{-\beta h}

The second is that of the chain with steps of h = dt, of mass ``h / (1 - delta)``. ``d / mass`` is the law of the state
at an independent exponential time tau of rate beta, and of the chain at ``K = floor(tau / h)``, because
``P(K = k) = delta^k (1 - delta)`` exactly. Two samplers, each a weight for every step of every path, so that
``E sum_k w_k f(X_k) = int f d`` whichever is used:

    Discounted      every step up to a horizon, ``w_k = h delta^k``; a share ``delta^T`` of the mass is left out
    Exponential     one step a path, that of tau, ``w = h / (1 - delta)``: exact, and the most variance

The *performance difference* of two policies is an integral of the one's advantage rate over the other's occupation,

.. math:: \eta(\pi') - \eta(\pi) = \int d^{\pi'}(dx) \int \pi'(da | x) [ q^\pi(x, a) - \gamma \log \pi'(a | x) ]

exact for the chain too, with its own q and d. With the optimum ``pi* = exp(q* / gamma)`` in the place of pi the
bracket averages to ``-gamma KL(pi' || pi*)``, so a policy loses ``gamma int d^{pi'} KL(pi' || pi*)`` to the best one:
its regret, estimated without a single reward, and with no noise at all at the optimum.

Reference: Zhao et al. 2023, arXiv:2305.18901 (occupation time, performance difference).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.control.environments.base import Environment
from girsanov.control.gaussian import ActionLaw
from girsanov.control.policies import Actor
from girsanov.control.solution import Solution
from girsanov.errors import GirsanovError
from girsanov.noise import Noise


@dataclass(frozen=True)
class Paths:
    """What B copies of an environment did in T steps.

    Attributes:
        x: states, [B, T + 1, n].
        a: actions, [B, T, m].
        reward: per unit time, [B, T].
        law: of the actions at the B T states.
    """

    x: Tensor
    a: Tensor
    reward: Tensor
    law: ActionLaw

    @property
    def states(self) -> Tensor:
        """The states that were acted in, [B, T, n]."""
        return self.x[:, :-1]

    @property
    def flat(self) -> tuple[Tensor, Tensor]:
        """States [B T, n] and actions [B T, m]."""
        return self.states.flatten(0, 1), self.a.flatten(0, 1)

    @property
    def entropy(self) -> Tensor:
        """The policy's entropy at the states, in nats, [B, T]."""
        return self.law.entropy().view_as(self.reward)


def simulate(environment: Environment, actor: Actor, start: Tensor, noise: Tensor) -> Paths:
    """Runs the environment from ``start`` [B, n] with standard normal noise [B, T, k + m]: its own, then the policy's.

    Raises GirsanovError if a state or a reward is not finite.
    """
    k, m = environment.noise_dim, environment.action_dim
    if noise.ndim != 3 or noise.shape[2] != k + m or len(noise) != len(start):
        raise GirsanovError(
            f"noise of shape {list(noise.shape)} does not fit {len(start)} paths: give [B, T, {k + m}], {k} numbers "
            f"for the environment and {m} for the policy at every step"
        )
    x, states, actions = start, [start], list[Tensor]()
    for shock in noise.unbind(1):
        a = actor(x).sample(shock[:, k:])
        x = environment.step(x, a, shock[:, :k])
        actions.append(a)
        states.append(x)
    xs, acts = torch.stack(states, 1), torch.stack(actions, 1)
    met, done = xs[:, :-1].flatten(0, 1), acts.flatten(0, 1)
    reward = environment.reward(met, done).view(acts.shape[:2])
    fine = reward.isfinite().all(0) & xs[:, 1:].flatten(2).isfinite().all(2).all(0)
    if not bool(fine.all()):
        step = int((~fine).nonzero()[0])
        raise GirsanovError(
            f"a state or reward is not finite at step {step} (time {step * environment.dt:.3g}): the policy drives the "
            "environment away; start from an admissible policy, lower the learning rate or dt"
        )
    return Paths(xs, acts, reward, actor(met))


def starts(environment: Environment, noise: Noise, dtype: torch.dtype) -> Tensor:
    """First states [B, n], each from its sample's own stream."""
    drawn = [environment.start(1, g, dtype) for g in noise.generators]
    return torch.cat(drawn)


def mass(environment: Environment) -> float:
    """``h / (1 - delta)``: how much time, discounted, there is; 1 / beta as dt -> 0."""
    return environment.dt / -math.expm1(-environment.discount * environment.dt)


def discounts(environment: Environment, steps: int, like: Tensor) -> Tensor:
    """``h delta^k`` for k below ``steps``, [T]."""
    k = torch.arange(steps, device=like.device, dtype=torch.float64)
    return (environment.dt * torch.exp(-environment.discount * environment.dt * k)).to(like.dtype)


def killed_at(environment: Environment, uniform: Tensor) -> Tensor:
    """``K = floor(tau / dt)`` of exponential times made of uniform numbers [B], int64 [B]."""
    return (-torch.log1p(-uniform) / (environment.discount * environment.dt)).floor().long()


class OccupationSampler(ABC):
    """Which steps of which paths stand for the occupation time, and with what weight."""

    @abstractmethod
    def weights(self, environment: Environment, uniform: Tensor) -> Tensor:
        """Weights [B, T] for paths with these uniform numbers [B]; T is how far they must be run."""


@dataclass(frozen=True)
class Discounted(OccupationSampler):
    """Every step up to a horizon, with weight ``dt exp(-beta k dt)``.

    Attributes:
        horizon: in units of 1 / beta; what comes later has the share ``exp(-horizon)`` and is left out.
    """

    horizon: float = 5.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.horizon) and self.horizon > 0):
            raise GirsanovError(f"horizon = {self.horizon} must be above 0: it is a time in units of 1 / discount")

    def weights(self, environment: Environment, uniform: Tensor) -> Tensor:
        """``h delta^k``, the same for all paths. Raises GirsanovError if the horizon is below one step."""
        steps = math.ceil(self.horizon / (environment.discount * environment.dt) - 1e-9)
        if self.horizon < environment.discount * environment.dt:
            raise GirsanovError(
                f"a horizon of {self.horizon:g} / discount is shorter than one step of dt = {environment.dt:g} at "
                f"discount {environment.discount:g}: lower dt or raise the horizon"
            )
        return discounts(environment, steps, uniform).expand(len(uniform), steps)


@dataclass(frozen=True)
class Exponential(OccupationSampler):
    """The step of an exponential time, one a path: samples of ``beta d``, without any truncation."""

    def weights(self, environment: Environment, uniform: Tensor) -> Tensor:
        """``h / (1 - delta)`` at the step of tau, 0 elsewhere; T is the last one of the batch."""
        step = killed_at(environment, uniform)
        out = torch.zeros(len(step), int(step.max()) + 1, dtype=uniform.dtype, device=uniform.device)
        return out.scatter_(1, step[:, None], mass(environment))


OCCUPATIONS: dict[str, type[OccupationSampler]] = {
    "discounted": Discounted,
    "exponential": Exponential,
}
"""Every way to sample the occupation time by name."""


@torch.no_grad()
def occupy(environment: Environment, actor: Actor, noise: Noise, dtype: torch.dtype = torch.float64) -> Tensor:
    """One state a path drawn from ``d / mass`` exactly, [B, n]."""
    uniform = noise.uniform()
    step = killed_at(environment, uniform)
    shape = (int(step.max()) + 1, environment.noise_dim + environment.action_dim)
    paths = simulate(environment, actor, starts(environment, noise, dtype), noise.normal(shape, dtype))
    return paths.x[torch.arange(len(step)), step]


def performance_difference(environment: Environment, q: Tensor, law: ActionLaw, weights: Tensor) -> Tensor:
    """``eta(pi') - eta(pi)`` a path, [B], of q of pi at what pi' did.

    Args:
        environment: for gamma.
        q: advantage rate of pi at the states and actions of pi', [B, T].
        law: pi' at those B T states.
        weights: of the occupation time, [B, T].
    """
    return (weights * (q + environment.entropy * law.entropy().view_as(q))).sum(1)


def regret(environment: Environment, optimum: Solution, actor: Actor, x: Tensor) -> Tensor:
    """``gamma mass KL(pi || pi*)`` at states x [B, n] drawn from ``d / mass``, [B]: its mean is the loss of value."""
    mean, covariance = optimum.policy(x)
    best = ActionLaw(mean, torch.linalg.cholesky(covariance))
    return environment.entropy * mass(environment) * actor(x).kl(best)
