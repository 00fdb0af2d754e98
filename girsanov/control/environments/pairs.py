r"""Optimal pair trading: how much to hold of a spread that reverts to its mean, to grow the logarithm of wealth.

A spread X is the log-price of one stock less that of another. With the share h of wealth W in the first and -h in the
second, and the interest r_f on the rest (Mudchanatongsuk, Primbs & Wong 2008, American Control Conference, pp.
1035-1039),

.. math::
    dX = k (\theta - X)\, dt + e\, dB, \qquad
    d \log W = [ r_f + h\, c(X) - \tfrac12 h^2 e^2 ]\, dt + h e\, dB, \\
    c(x) = k (\theta - x) + \tfrac12 e^2 + \rho s e

State (X, log W), action h, reward rate log W. Integrating by parts takes the wealth out, so the problem in X alone is
linear-quadratic with the growth of log W, times 1 / beta, as reward:

    V(x, w) = log w / beta + f2 x^2 + f1 x + f0,   best policy h ~ N( c(x) / e^2, gamma beta / e^2 ),
    f2 = k^2 / (2 beta e^2 (beta + 2 k)),   f1 = (2 k theta f2 - c0 k / (beta e^2)) / (beta + k),   c0 = c(0),
    f0 = [ (r_f + c0^2 / (2 e^2)) / beta + k theta f1 + e^2 f2 + (gamma / 2) log(2 pi gamma beta / e^2) ] / beta

For the chain 1 / beta is ``delta dt / (1 - delta)`` before the growth and ``dt / (1 - delta)`` before log W.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from girsanov.control.affine import AffinePolicy
from girsanov.control.environments.base import Environment, annuity, normal
from girsanov.control.linear_quadratic import LinearQuadratic, LQSolution
from girsanov.control.solution import Solution
from girsanov.errors import GirsanovError
from girsanov.settings import Finite, NonNegative, Positive, settings


@settings
class Pairs(Environment):
    """State (spread, log wealth), action: the share of wealth in the spread.

    Attributes:
        speed, level, volatility: k (1 / time), theta and e (1 / sqrt(time)) of the spread.
        correlation, stock_volatility: rho and s of the second stock.
        rate: r_f (1 / time).
        discount, entropy, dt: beta, gamma, length of a step.
        start_mean, start_std: of the normal law of the first spread; log W starts at 0.
    """

    speed: Positive = 1.0
    level: Finite = 0.1
    volatility: Positive = 0.3
    correlation: Finite = 0.3
    stock_volatility: NonNegative = 0.2
    rate: Finite = 0.02
    discount: Positive = 0.5
    entropy: Positive = 0.02
    dt: Positive = 0.05
    start_mean: Finite = 0.1
    start_std: NonNegative = 0.2

    state_dim = 2
    states = ("spread", "log wealth")
    action_dim = 1
    noise_dim = 1

    def __post_init__(self) -> None:
        if not -1 <= self.correlation <= 1:
            raise GirsanovError(f"the correlation must be between -1 and 1, not {self.correlation}")
        self.chain()

    @property
    def c0(self) -> float:
        """The growth that a share of 1 earns at spread 0, before its variance."""
        own = self.volatility**2 / 2 + self.correlation * self.stock_volatility * self.volatility
        return self.speed * self.level + own

    def drift(self, x: Tensor, a: Tensor) -> Tensor:
        """Of the spread and of log W, [B, 2]."""
        spread = x[:, :1]
        growth = self.rate + a * (self.c0 - self.speed * spread) - (self.volatility**2 / 2) * a**2
        return torch.cat([self.speed * (self.level - spread), growth], 1)

    def diffusion(self, x: Tensor, a: Tensor) -> Tensor:
        """(e, h e), [B, 2, 1]."""
        return self.volatility * torch.stack([torch.ones_like(a), a], 1)

    def reward(self, x: Tensor, a: Tensor) -> Tensor:
        """log W, [B]."""
        return x[:, 1]

    def start(self, n: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal spreads and wealth 1, [n, 2]."""
        spread = self.start_mean + self.start_std * normal(n, 1, generator, dtype)
        return torch.cat([spread, torch.zeros_like(spread)], 1)

    def reduced(self, dt: float = 0.0) -> LinearQuadratic:
        """The problem in the spread alone, in continuous time (0) or as a chain."""
        growth = [[0.0, 0.0, -self.speed], [0.0, 2 * self.rate, self.c0], [-self.speed, self.c0, -(self.volatility**2)]]
        weight = math.exp(-self.discount * dt) * annuity(self.discount, dt)
        second = self.start_mean**2 + self.start_std**2
        return LinearQuadratic(
            drift=torch.tensor([[-self.speed, self.speed * self.level, 0.0]], dtype=torch.float64),
            noise=torch.tensor([[[0.0, self.volatility, 0.0]]], dtype=torch.float64),
            reward=weight * torch.tensor(growth, dtype=torch.float64),
            discount=self.discount,
            entropy=self.entropy,
            start=torch.tensor([[second, self.start_mean], [self.start_mean, 1.0]], dtype=torch.float64),
            dt=dt,
        )

    def solution(self) -> "PairsSolution":
        """The optimum in continuous time."""
        return self._continuous

    def chain(self) -> "PairsSolution":
        """The optimum of the Euler-Maruyama chain."""
        return self._chain

    @cached_property
    def _continuous(self) -> "PairsSolution":
        return PairsSolution(self.reduced().optimum())

    @cached_property
    def _chain(self) -> "PairsSolution":
        return PairsSolution(self.reduced(self.dt).optimum())


@dataclass(frozen=True, eq=False)
class PairsSolution(Solution):
    """Value and q of a policy that is affine in the spread.

    Attributes:
        reduced: the solution of the problem in the spread alone; it has the occupation and the policy gradient.
    """

    reduced: LQSolution

    @property
    def per_log_wealth(self) -> float:
        """What a unit of log W is worth: 1 / beta in continuous time."""
        return annuity(self.reduced.problem.discount, self.reduced.problem.dt)

    def value(self, x: Tensor) -> Tensor:
        """V(x), [B]."""
        return self.reduced.value(x[:, :1]) + self.per_log_wealth * x[:, 1]

    def gradient(self, x: Tensor) -> Tensor:
        """grad V(x), [B, 2]."""
        return torch.cat([self.reduced.gradient(x[:, :1]), torch.full_like(x[:, 1:], self.per_log_wealth)], 1)

    def q(self, x: Tensor, a: Tensor) -> Tensor:
        """q(x, a), [B]; it does not depend on the wealth."""
        return self.reduced.q(x[:, :1], a)

    def policy(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B, 1] and covariance [B, 1, 1]."""
        return self.reduced.policy(x[:, :1])

    @property
    def affine(self) -> AffinePolicy:
        """The policy on both states, slope [1, 2]."""
        p = self.reduced.affine
        return AffinePolicy(torch.cat([p.slope, torch.zeros_like(p.slope)], 1), p.offset, p.covariance)

    @property
    def objective(self) -> float:
        """``E V(X_0)`` from wealth 1."""
        return self.reduced.objective

    def evaluate(self, policy: AffinePolicy) -> "PairsSolution":
        """The solution of another policy, slope [1, 2]. Raises GirsanovError if it depends on the wealth."""
        if policy.slope.shape != (1, 2) or float(policy.slope[0, 1]) != 0:
            raise GirsanovError(
                "only a policy that does not look at the wealth has a closed form: give a slope [1, 2] whose second "
                "entry is 0"
            )
        return PairsSolution(self.reduced.evaluate(AffinePolicy(policy.slope[:, :1], policy.offset, policy.covariance)))
