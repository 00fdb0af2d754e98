r"""Merton's portfolio and consumption with logarithmic utility, and exploration in both.

.. math::
    d \log W = [ r_f + h \cdot \mu - \tfrac12 h^T \Sigma h - e^u ]\, dt + h^T L\, dB, \qquad r = u + \log W, \quad
    \Sigma = L L^T

State log W; actions: the shares h of wealth in d assets and the logarithm u of the rate at which wealth is consumed, so
the reward is the logarithm of what is consumed. With ``w = 1 / beta`` (``delta dt / (1 - delta)`` for the chain) the
value is ``log W / beta + v0`` and q does not depend on the wealth:

    q(h, u) = w (r_f + h' mu - h' Sigma h / 2) + (u - w e^u) - beta v0

So the best policy is the same everywhere: h is normal about Merton's ``Sigma^-1 mu`` with the *full* covariance
``gamma Sigma^-1 / w``, and ``w e^u / gamma`` has a Gamma(1 / gamma) law: not a normal u. The best normal one has mean
``-log w - gamma / 2`` and variance gamma, and what normality costs is known (``best_normal``).
References: Merton 1969, Review of Economics and Statistics 51:247 (gamma = 0); the entropy terms are derived above.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from girsanov.control.affine import positive
from girsanov.control.environments.base import Environment, annuity, normal
from girsanov.control.solution import Solution
from girsanov.errors import GirsanovError
from girsanov.settings import Finite, NonNegative, Positive, settings


@settings
class Portfolio(Environment):
    """State log W; actions: d shares and the logarithm of the consumption rate.

    Attributes:
        rate: r_f (1 / time).
        excess: mu, the drift of each asset above r_f (1 / time), d numbers.
        volatility: L, what each of k noises does to each asset (1 / sqrt(time)), d rows of k.
        discount, entropy, dt: beta, gamma, length of a step.
        start_mean, start_std: of the normal law of the first log W.
    """

    rate: Finite = 0.02
    excess: tuple[Finite, ...] = (0.06, 0.04)
    volatility: tuple[tuple[Finite, ...], ...] = ((0.25, 0.0), (0.1, 0.2))
    discount: Positive = 0.2
    entropy: Positive = 0.1
    dt: Positive = 0.1
    start_mean: Finite = 0.0
    start_std: NonNegative = 0.5

    state_dim = 1
    states = ("log wealth",)

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.volatility}
        if len(self.volatility) != len(self.excess) or len(widths) != 1 or not self.excess:
            raise GirsanovError(
                f"{len(self.excess)} assets need {len(self.excess)} equally long rows of volatility, not "
                f"{[len(row) for row in self.volatility]}"
            )
        if not positive(self.covariance):
            raise GirsanovError(
                "the value does not exist: the covariance L L' of the assets must be positive definite, or one could "
                "hold without bound what has no risk"
            )

    @property
    def action_dim(self) -> int:
        """d + 1."""
        return len(self.excess) + 1

    @property
    def noise_dim(self) -> int:
        """k."""
        return len(self.volatility[0])

    @cached_property
    def loadings(self) -> Tensor:
        """L, [d, k]."""
        return torch.tensor(self.volatility, dtype=torch.float64)

    @cached_property
    def covariance(self) -> Tensor:
        """Sigma, [d, d]."""
        return self.loadings @ self.loadings.T

    @cached_property
    def premium(self) -> Tensor:
        """mu, [d]."""
        return torch.tensor(self.excess, dtype=torch.float64)

    def growth(self, h: Tensor) -> Tensor:
        """Drift of log W before consumption at shares h [B, d], [B]."""
        return self.rate + h @ self.premium.to(h) - ((h @ self.covariance.to(h)) * h).sum(1) / 2

    def drift(self, x: Tensor, a: Tensor) -> Tensor:
        """Of log W, [B, 1]."""
        return (self.growth(a[:, :-1]) - a[:, -1].exp())[:, None]

    def diffusion(self, x: Tensor, a: Tensor) -> Tensor:
        """h' L, [B, 1, k]."""
        return (a[:, :-1] @ self.loadings.to(a))[:, None]

    def reward(self, x: Tensor, a: Tensor) -> Tensor:
        """Logarithm of the consumption, [B]."""
        return a[:, -1] + x[:, 0]

    def start(self, n: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal log W, [n, 1]."""
        return self.start_mean + self.start_std * normal(n, 1, generator, dtype)

    def solution(self) -> "PortfolioSolution":
        """The optimum in continuous time."""
        return self.optimum(0.0)

    def chain(self) -> "PortfolioSolution":
        """The optimum of the Euler-Maruyama chain."""
        return self.optimum(self.dt)

    def optimum(self, dt: float) -> "PortfolioSolution":
        """The best policy of all, in continuous time (0) or of a chain."""
        gamma, w = self.entropy, math.exp(-self.discount * dt) * annuity(self.discount, dt)
        shape = torch.tensor(1 / gamma, dtype=torch.float64)
        spread = gamma * torch.linalg.inv(self.covariance) / w
        h = torch.linalg.solve(self.covariance, self.premium)
        mean = torch.cat([h, (torch.digamma(shape) + math.log(gamma / w))[None]])
        covariance = torch.block_diag(spread, torch.polygamma(1, shape)[None, None])
        shares = w * float(self.growth(h[None])[0]) + gamma / 2 * float(torch.logdet(2 * math.pi * spread))
        consumption = gamma * math.lgamma(1 / gamma) + math.log(gamma / w)
        return PortfolioSolution(self, dt, mean, covariance, annuity(self.discount, dt) * (shares + consumption))

    def best_normal(self, dt: float = 0.0) -> "PortfolioSolution":
        """The best of the normal policies."""
        best = self.optimum(dt)
        mean, covariance = best.mean.clone(), best.covariance.clone()
        w = math.exp(-self.discount * dt) * annuity(self.discount, dt)
        mean[-1], covariance[-1, -1] = -math.log(w) - self.entropy / 2, self.entropy
        return best.evaluate(mean, covariance)


@dataclass(frozen=True, eq=False)
class PortfolioSolution(Solution):
    """Value and q of a policy that is the same everywhere.

    Attributes:
        environment: whose.
        dt: 0 in continuous time.
        mean, covariance: of the policy, [m] and [m, m]; the best one of all is not normal in its last coordinate.
        offset: v0, the value at wealth 1.
    """

    environment: Portfolio
    dt: float
    mean: Tensor
    covariance: Tensor
    offset: float

    @property
    def per_log_wealth(self) -> float:
        """What a unit of log W is worth: 1 / beta in continuous time."""
        return annuity(self.environment.discount, self.dt)

    def value(self, x: Tensor) -> Tensor:
        """V(x), [B]."""
        return self.per_log_wealth * x[:, 0] + self.offset

    def gradient(self, x: Tensor) -> Tensor:
        """grad V(x), [B, 1]."""
        return torch.full_like(x, self.per_log_wealth)

    def q(self, x: Tensor, a: Tensor) -> Tensor:
        """q(x, a), [B]; it does not depend on x."""
        w = math.exp(-self.environment.discount * self.dt) * self.per_log_wealth
        earned = a[:, -1] + w * (self.environment.growth(a[:, :-1]) - a[:, -1].exp())
        return earned - self.offset / self.per_log_wealth

    def policy(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B, m] and covariance [B, m, m]."""
        return self.mean.to(x).expand(len(x), -1), self.covariance.to(x).expand(len(x), -1, -1)

    @property
    def objective(self) -> float:
        """``E V(X_0)``."""
        return self.per_log_wealth * self.environment.start_mean + self.offset

    def evaluate(self, mean: Tensor, covariance: Tensor) -> "PortfolioSolution":
        """The solution of a normal policy of mean [m] and covariance [m, m] that is the same everywhere."""
        if not positive(covariance):
            raise GirsanovError("the covariance of the policy must be symmetric and positive definite")
        env, h, S = self.environment, mean[:-1], covariance[:-1, :-1]
        w = math.exp(-env.discount * self.dt) * self.per_log_wealth
        growth = float(env.growth(h[None])[0]) - float((env.covariance * S).sum()) / 2
        consumed = math.exp(float(mean[-1]) + float(covariance[-1, -1]) / 2)
        entropy = env.entropy / 2 * float(torch.logdet(2 * math.pi * math.e * covariance))
        offset = self.per_log_wealth * (float(mean[-1]) + w * (growth - consumed) + entropy)
        return PortfolioSolution(env, self.dt, mean, covariance, offset)
