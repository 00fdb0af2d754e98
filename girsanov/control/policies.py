r"""Gaussian policies ``a ~ N(mean(x), L(x) L(x)^T)``: networks for the mean and for the spread, in any pairing.

An ``Actor`` is what ``Policy`` tunes: a network whose output at states [B, n] is a mean [B, m] and a factor L, [m, m]
or [B, m, m]. The diagonal of L is ``exp`` of a free number, so that every parameter value is a law.

``AffineActor`` starts anywhere it is told to, or at a random admissible policy: slope, offset and log-std are drawn
until the policy has a value (in one dimension: ``2 (A + B slope) + (C + D slope)^2 < discount``), in continuous time
and at the environment's dt.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from girsanov.control.affine import AffinePolicy
from girsanov.control.environments.base import Environment
from girsanov.control.environments.linear import LinearEnvironment
from girsanov.control.gaussian import ActionLaw
from girsanov.errors import GirsanovError
from girsanov.noise import generator
from girsanov.policy import Policy
from girsanov.settings import Count, Finite, Natural, Positive, settings

DRAWS = 1000  # attempts at a random admissible policy
START_STREAM = 5_003


@dataclass(frozen=True)
class Actor:
    """A policy over actions.

    Attributes:
        net: ``net(x [B, n]) -> (mean [B, m], factor [m, m] or [B, m, m])``.
        state_dim, action_dim: n and m.
    """

    net: Callable[..., Any]
    state_dim: int
    action_dim: int

    def __call__(self, x: Tensor) -> ActionLaw:
        """The law of the action at states x [B, n]. Raises GirsanovError if a shape does not fit."""
        if x.ndim != 2 or x.shape[1] != self.state_dim:
            raise GirsanovError(f"the policy acts on states [B, {self.state_dim}], got {list(x.shape)}")
        law = ActionLaw(*self.net(x))
        if law.mean.shape != (len(x), self.action_dim):
            raise GirsanovError(
                f"the policy returned actions {list(law.mean.shape)} for {len(x)} states: the environment takes "
                f"[B, {self.action_dim}]"
            )
        return law


def actor_of(policy: Policy, environment: Environment, name: str = "current") -> Actor:
    """The named view of a policy, as an actor for an environment. Raises GirsanovError if it is none."""
    actor: Any = policy.view(name)
    if not isinstance(actor, Actor):
        raise GirsanovError("an agent acts in an environment: give it Policy(actor), not a generative model's policy")
    have, want = (actor.state_dim, actor.action_dim), (environment.state_dim, environment.action_dim)
    if have != want:
        raise GirsanovError(
            f"a policy of {have[0]} states and {have[1]} actions does not fit an environment of {want[0]} states and "
            f"{want[1]} actions: build it with POLICIES[...]().build(environment)"
        )
    return actor


# ---- networks


def below(m: int) -> Tensor:
    """Rows and columns below the diagonal of [m, m], [2, m (m - 1) / 2]."""
    return torch.tril_indices(m, m, -1)


class ConstantFactor(nn.Module):
    """One factor L [m, m] for all states.

    Args:
        factor: its start, lower triangular.
    """

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.log_diagonal = nn.Parameter(factor.diagonal().log().clone())
        self.below = nn.Parameter(factor[tuple(below(len(factor)))].clone())

    def forward(self, x: Tensor) -> Tensor:
        """L [m, m], whatever the states."""
        factor = torch.diag(self.log_diagonal.exp())
        if not len(self.below):
            return factor
        return factor.index_put(tuple(below(len(factor)).to(factor.device)), self.below)


class StateStd(nn.Module):
    """A diagonal factor that depends on the state, ``std exp(net(x))``; the network starts at zero."""

    def __init__(self, n: int, m: int, width: int, std: float) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.full((m,), std).log())
        self.net = mlp(n, m, width)

    def forward(self, x: Tensor) -> Tensor:
        """L [B, m, m]."""
        return torch.diag_embed((self.log_std + self.net(x)).exp())


class ActorNet(nn.Module):
    """A mean and a factor, each a module of the states that the policy looks at.

    Args:
        mean, factor: of the law.
        sees: numbers of those states.
        n: of all.
    """

    def __init__(self, mean: nn.Module, factor: nn.Module, sees: Sequence[int], n: int) -> None:
        super().__init__()
        self.mean, self.factor = mean, factor
        self.sees = None if list(sees) == list(range(n)) else list(sees)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B, m] and factor of the law at x [B, n]."""
        seen = x if self.sees is None else x[:, self.sees]
        return self.mean(seen), self.factor(seen)


def mlp(n: int, m: int, width: int, zero: bool = True) -> nn.Sequential:
    """Two hidden layers; the last layer starts at zero (or as torch has it)."""
    net = nn.Sequential(nn.Linear(n, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, m))
    if zero:
        last: Any = net[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return net


# ---- what a run is told


class PolicyConfig(ABC):
    """How a policy is built for an environment.

    Attributes:
        sees: numbers of the states it looks at; None is all.
    """

    sees: tuple[int, ...] | None

    @abstractmethod
    def build(self, environment: Environment, seed: int = 0) -> Actor:
        """The policy at its start, float64; the same seed gives the same one. Raises GirsanovError if it has no value,
        or its shapes do not fit."""

    def seen(self, environment: Environment) -> tuple[int, ...]:
        """The states it looks at."""
        n = environment.state_dim
        sees = tuple(range(n)) if self.sees is None else self.sees
        if not sees or len(set(sees)) != len(sees) or not set(sees) <= set(range(n)):
            raise GirsanovError(f"actor.sees = {list(sees)} must name some of the states 0 to {n - 1}, each once")
        return sees


@settings
class AffineActor(PolicyConfig):
    """``N(slope x + offset, L L^T)``, one L for all states: the form that linear-quadratic optima have.

    Attributes:
        slope: rows [m], a number for each state it looks at; None with ``offset`` and ``std`` None draws a random
            admissible policy.
        offset: [m]; None is 0 where a slope is given.
        std: of every action, independent at the start; None is 1 where a slope is given.
        sees: numbers of the states it looks at; None is all.
    """

    slope: tuple[tuple[Finite, ...], ...] | None = None
    offset: tuple[Finite, ...] | None = None
    std: Positive | None = None
    sees: tuple[Natural, ...] | None = None

    def build(self, environment: Environment, seed: int = 0) -> Actor:
        """The policy."""
        start, sees = self.start(environment, seed), self.seen(environment)
        n, m = environment.state_dim, environment.action_dim
        mean = nn.Linear(len(sees), m).double()
        with torch.no_grad():
            mean.weight.copy_(start.slope[:, list(sees)])
            mean.bias.copy_(start.offset)
        factor = ConstantFactor(torch.linalg.cholesky(start.covariance))
        return Actor(ActorNet(mean, factor, sees, n), n, m)

    def start(self, environment: Environment, seed: int = 0) -> AffinePolicy:
        """The policy at its start as numbers, its slope [m, n]."""
        sees, m = list(self.seen(environment)), environment.action_dim
        if self.slope is None:
            if self.offset is not None or self.std is not None:
                raise GirsanovError("a start with an offset or a std needs a slope too: give it as actor.slope=[[...]]")
            return random_admissible(environment, sees, seed)
        if {len(row) for row in self.slope} != {len(sees)} or len(self.slope) != m:
            raise GirsanovError(f"actor.slope needs {m} rows of {len(sees)} numbers for this environment")
        if len(self.offset or (0.0,) * m) != m:
            raise GirsanovError(f"actor.offset needs {m} numbers for this environment")
        offset = torch.tensor(self.offset or (0.0,) * m, dtype=torch.float64)
        slope = torch.zeros(m, environment.state_dim, dtype=torch.float64)
        slope[:, sees] = torch.tensor(self.slope, dtype=torch.float64)
        policy = AffinePolicy(slope, offset, (self.std or 1.0) ** 2 * torch.eye(m, dtype=torch.float64))
        check_admissible(environment, policy)
        return policy


@settings
class NetworkActor(PolicyConfig):
    """A network for the mean, which starts at 0, and a factor.

    Attributes:
        width: of two hidden layers, here and in the factor's network.
        std: of every action at the start.
        sees: numbers of the states it looks at; None is all.
    """

    width: Count = 64
    std: Positive = 1.0
    sees: tuple[Natural, ...] | None = None

    @abstractmethod
    def factor(self, n: int, m: int) -> nn.Module:
        """L of m actions, from n states."""

    def build(self, environment: Environment, seed: int = 0) -> Actor:
        """The policy; the seed is that of the hidden layers."""
        n, m, sees = environment.state_dim, environment.action_dim, self.seen(environment)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            factor = self.factor(len(sees), m)
            net = ActorNet(mlp(len(sees), m, self.width), factor, sees, n)
        return Actor(net.double(), n, m)


@settings
class MLPActor(NetworkActor):
    """A network for the mean, one L for all states; it starts at mean 0. Attributes: as ``NetworkActor``."""

    def factor(self, n: int, m: int) -> nn.Module:
        """One L."""
        return ConstantFactor(self.std * torch.eye(m))


@settings
class StateStdActor(NetworkActor):
    """Networks for the mean and for the log-std of every action. Attributes: as ``NetworkActor``."""

    def factor(self, n: int, m: int) -> nn.Module:
        """A diagonal L that depends on the state."""
        return StateStd(n, m, self.width, self.std)


POLICIES: dict[str, type[PolicyConfig]] = {
    "affine": AffineActor,
    "mlp": MLPActor,
    "mlp-state-std": StateStdActor,
}
"""Every form of a policy by name."""


# ---- admissible starts


def check_admissible(environment: Environment, policy: AffinePolicy) -> None:
    """Raises GirsanovError, with the violated condition, if a policy is known to have no value here."""
    if isinstance(environment, LinearEnvironment):
        for dt in (0.0, environment.dt):
            environment.problem.at(dt).evaluate(policy)


def random_admissible(environment: Environment, sees: Sequence[int] | None = None, seed: int = 0) -> AffinePolicy:
    """A policy with normal slopes and offsets and a log-normal std (median 1/2) that has a value."""
    g = generator((seed, START_STREAM))
    n, m = environment.state_dim, environment.action_dim
    shown = torch.zeros(n, dtype=torch.float64)
    shown[list(range(n)) if sees is None else list(sees)] = 1.0
    for _ in range(DRAWS):
        slope, offset, log_std = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((m, n), (m,), (m,)))
        policy = AffinePolicy(slope * shown, offset, torch.diag((0.5 * (0.5 * log_std).exp()) ** 2))
        try:
            check_admissible(environment, policy)
        except GirsanovError:
            continue
        return policy
    raise GirsanovError(
        f"none of {DRAWS} random policies has a value in this environment: give an admissible start with actor.slope"
    )
