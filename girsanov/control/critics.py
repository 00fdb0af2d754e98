r"""Critics: the value of the current policy from its paths, by martingale orthogonality.

With V the value of the policy, ``rho = r + gamma H`` (H the policy's entropy: the exact average of ``-log pi``) and
``delta = e^{-beta h}``, h = dt,

.. math::
    M_t = e^{-\beta t} V(X_t) + \int_0^t e^{-\beta s} \rho_s\, ds, \qquad
    dM_k = \delta^k [ \rho_k h + \delta V(X_{k+1}) - V(X_k) ]

is a martingale, and so orthogonal to every *test function* that looks at the past: ``E sum_k zeta_k dM_k = 0``. For the
chain of steps h this is exact, whatever h is. The test functions here are traces of features,

.. math:: \zeta_k = e^{-\kappa h} \zeta_{k-1} + \phi(X_k)

with a rate kappa per unit *time* (TD(lambda) with ``lambda = e^{-kappa h}``; kappa = inf is TD(0), 0 is Monte Carlo up
to the horizon). A lambda per step would change its meaning with dt.

    LeastSquares          V = theta . phi: the conditions are linear in theta and are solved in every iteration
    Galerkin              the same with the generator instead of the next state, for whoever knows drift and diffusion
    TemporalDifference    V a network: semi-gradient TD(lambda), ``(V(X_k) - G_k)^2`` with G the lambda-return, fixed

References: Jia & Zhou 2022, arXiv:2108.06655 (policy evaluation by martingales); Zhao et al. 2023, arXiv:2305.18901.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from girsanov.control.environments.base import Environment
from girsanov.control.occupation import Paths
from girsanov.control.policies import mlp
from girsanov.control.values import NetValue, QuadraticValue, Value, generator_of_quadratic, quadratic
from girsanov.distributed import Reduce
from girsanov.errors import GirsanovError
from girsanov.methods.base import State


@dataclass(frozen=True)
class Trace:
    """Test functions that remember.

    Attributes:
        rate: kappa, by which the memory fades per unit time; inf is none.
    """

    rate: float = math.inf

    def __post_init__(self) -> None:
        if not self.rate >= 0:
            raise GirsanovError(f"the rate of a trace must not be negative, not {self.rate}: 0 forgets nothing")

    def factor(self, environment: Environment) -> float:
        """``e^{-kappa dt}``."""
        return math.exp(-self.rate * environment.dt)

    def __call__(self, phi: Tensor, environment: Environment) -> Tensor:
        """zeta [B, T, p] of features phi [B, T, p]."""
        factor = self.factor(environment)
        if factor == 0.0:
            return phi
        zeta = [phi[:, 0]]
        for now in phi.unbind(1)[1:]:
            zeta.append(factor * zeta[-1] + now)
        return torch.stack(zeta, 1)

    def returns(self, rho: Tensor, v: Tensor, environment: Environment) -> Tensor:
        """Lambda-returns ``G_k = rho_k h + delta ((1 - lambda) V_{k+1} + lambda G_{k+1})`` [B, T], of v [B, T + 1]."""
        lam, delta = self.factor(environment), math.exp(-environment.discount * environment.dt)
        after, out = v[:, -1], list[Tensor]()
        for k in range(rho.shape[1] - 1, -1, -1):
            after = rho[:, k] * environment.dt + delta * torch.lerp(v[:, k + 1], after, lam)
            out.append(after)
        return torch.stack(out[::-1], 1)


class Critic(ABC):
    """A value function that follows the policy."""

    def network(self, environment: Environment) -> nn.Module | None:
        """The network to train, if there is one; a new one at every call."""
        return None

    def targets(self, environment: Environment, paths: Paths, value: Value) -> Tensor | None:
        """What the network is regressed on, [B, T], if there is one."""
        return None

    @abstractmethod
    def value(self, environment: Environment, net: nn.Module | None, state: State) -> Value:
        """The value function as it stands."""

    @abstractmethod
    def fit(self, environment: Environment, net: nn.Module | None, paths: Paths, state: State, reduce: Reduce) -> Value:
        """The value of the policy that made the paths; what moves in closed form is kept in ``state``."""


def income(environment: Environment, paths: Paths) -> Tensor:
    """``rho = r + gamma H``, [B, T]."""
    return paths.reward + environment.entropy * paths.entropy


@dataclass(frozen=True)
class Equations:
    """``gram theta = moment`` of a batch, and how those of the iterations before are kept.

    Attributes:
        memory: weight of the equations of the iteration before, relative to those of this one; 0 keeps none. Equations
            are scaled to norm 1 first, so that a batch of large states does not rule over those after it. Old equations
            are of older policies: near the optimum that is an error of second order.
        ridge: added to the equations, against features that do not vary.
    """

    memory: float = 0.0
    ridge: float = 1e-9

    def __post_init__(self) -> None:
        if not (0 <= self.memory < 1 and self.ridge >= 0):
            raise GirsanovError(f"memory = {self.memory} must be in [0, 1) and ridge = {self.ridge} not negative")

    def solve(self, gram: Tensor, moment: Tensor, state: State, reduce: Reduce) -> Tensor:
        """theta [p]; what is remembered stays in ``state``. Raises GirsanovError where there is no solution."""
        gram, moment = reduce.mean(gram), reduce.mean(moment)
        norm = torch.linalg.matrix_norm(gram)
        gram, moment = gram / norm, moment / norm
        if self.memory and "gram" in state:
            gram, moment = (
                torch.lerp(gram, state["gram"], self.memory),
                torch.lerp(moment, state["moment"], self.memory),
            )
        theta, info = torch.linalg.solve_ex(gram + self.ridge * torch.eye(len(gram)).to(gram), moment)
        if int(info) or not bool(theta.isfinite().all()):
            raise GirsanovError(
                "the critic's equations cannot be solved: the states do not vary enough to tell its features apart; "
                "use more paths, or method.critic=td"
            )
        state["gram"], state["moment"], state["theta"] = gram, moment, theta
        return theta


class QuadraticCritic(Critic):
    """A critic with the features ``(1, x_i, x_i x_j)``."""

    def value(self, environment: Environment, net: nn.Module | None, state: State) -> QuadraticValue:
        """The last solution. Raises GirsanovError before the first one."""
        if "theta" not in state:
            raise GirsanovError("the critic has seen no paths yet: train for an iteration first")
        return QuadraticValue(state["theta"], environment.state_dim)


@dataclass(frozen=True)
class LeastSquares(QuadraticCritic):
    """The orthogonality conditions on quadratic features, solved in every iteration; model-free.

    Attributes:
        trace: the test functions.
        fade: rate (1 / time) at which later steps count less; 0 uses all of a path alike (any adapted weight is right),
            the discount weighs states as the occupation time does.
        equations: memory and ridge.
    """

    trace: Trace = field(default_factory=Trace)
    fade: float = 0.0
    equations: Equations = field(default_factory=Equations)

    def fit(
        self, environment: Environment, net: nn.Module | None, paths: Paths, state: State, reduce: Reduce
    ) -> QuadraticValue:
        """Solves ``sum_k e^{-fade k h} zeta_k [ (phi_k - delta phi_{k+1})' theta - rho_k h ] = 0``."""
        phi = quadratic(paths.x)
        zeta = self.trace(phi[:, :-1], environment)
        delta = math.exp(-environment.discount * environment.dt)
        later = torch.exp(-self.fade * environment.dt * torch.arange(zeta.shape[1]).to(zeta))
        weighted = zeta * later[:, None]
        gram = torch.einsum("btp,btq->pq", weighted, phi[:, :-1] - delta * phi[:, 1:]) / len(phi)
        moment = torch.einsum("btp,bt->p", weighted, income(environment, paths)) * environment.dt / len(phi)
        return QuadraticValue(self.equations.solve(gram, moment, state, reduce), environment.state_dim)


@dataclass(frozen=True)
class Galerkin(QuadraticCritic):
    """The same conditions with the generator in the place of the next state: no noise of the environment is left.

    ``sum_k e^{-fade k h} phi_k [ (beta phi_k - L phi_k)' theta - rho_k ] = 0`` with ``L phi = b . grad phi +
    tr(sigma sigma' phi'') / 2`` at the states and actions met. It needs drift and diffusion, and is that of continuous
    time whatever dt is.

    Attributes:
        fade, equations: as in ``LeastSquares``.
    """

    fade: float = 0.0
    equations: Equations = field(default_factory=Equations)

    def fit(
        self, environment: Environment, net: nn.Module | None, paths: Paths, state: State, reduce: Reduce
    ) -> QuadraticValue:
        """Solves the conditions."""
        b, steps, n = paths.states.shape
        x, a = paths.flat
        phi, moved = quadratic(x), generator_of_quadratic(x, environment.drift(x, a), environment.diffusion(x, a))
        later = torch.exp(-self.fade * environment.dt * torch.arange(steps).to(x)).repeat(b)
        weighted = phi * later[:, None]
        gram = weighted.T @ (environment.discount * phi - moved) / b
        moment = weighted.T @ income(environment, paths).flatten() / b
        return QuadraticValue(self.equations.solve(gram, moment, state, reduce), n)


Network = Callable[[int], nn.Module]
"""``network(n) -> nn.Module`` from states [B, n] to values [B] or [B, 1]."""


@dataclass(frozen=True)
class TemporalDifference(Critic):
    """A network, trained by the loop beside the policy (``train.module_lr``).

    Attributes:
        width: of its two hidden layers.
        trace: rate of the lambda-returns.
        net: makes another network than that, ``net(n)`` for states of size n.
        seed: of its first weights.
    """

    width: int = 64
    trace: Trace = field(default_factory=lambda: Trace(2.0))
    net: Network | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.width < 1:
            raise GirsanovError(f"width = {self.width} of the critic must be at least 1")

    def network(self, environment: Environment) -> nn.Module:
        """A new network; raises GirsanovError if it does not return one value a state."""
        n = environment.state_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = mlp(n, 1, self.width) if self.net is None else self.net(n)
        parameter = next(net.parameters(), torch.zeros(()))
        with torch.no_grad():
            NetValue(net)(torch.zeros(3, n, dtype=parameter.dtype))
        return net

    def targets(self, environment: Environment, paths: Paths, value: Value) -> Tensor:
        """The lambda-returns under the value as it stands, [B, T]."""
        v = value(paths.x.flatten(0, 1)).view(paths.x.shape[:2])
        return self.trace.returns(income(environment, paths), v, environment)

    def value(self, environment: Environment, net: nn.Module | None, state: State) -> NetValue:
        """The network as it stands."""
        assert net is not None
        return NetValue(net)

    def fit(
        self, environment: Environment, net: nn.Module | None, paths: Paths, state: State, reduce: Reduce
    ) -> NetValue:
        """The network as it stands: the loop trains it."""
        return self.value(environment, net, state)


CRITICS: dict[str, type[Critic]] = {
    "least-squares": LeastSquares,
    "galerkin": Galerkin,
    "td": TemporalDifference,
}
"""Every critic by name."""
