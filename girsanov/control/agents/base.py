r"""What the agents share: paths, a critic, advantage rates, and the discounted occupation time they are weighted with.

The policy gradient of the discounted, entropy-regularised objective eta is

.. math:: \nabla \eta = \int d^\pi(dx) \int \pi(da | x)\, \nabla \log \pi(a | x) [ q(x, a) - \gamma \log \pi(a | x) ]
    = E \sum_k w_k [ \nabla \log \pi(a_k | X_k) ( q_k + \gamma H(X_k) ) + \gamma \nabla H(X_k) ]

with the weights w of ``occupation.py`` (of mass 1 / beta, so no factor is left) and the entropy H of the Gaussian
policy in place of samples of ``-log pi``: the same expectation with less noise. ``q + gamma H`` averages to 0 over the
actions of a state if the critic is right; what is left of its average over the batch is taken off.

An agent is a ``Method``: its "prompts" are the paths of an iteration, whose ids key all noise, so that one and two
processes, any micro-batch, and a resumed run give the same numbers.

Reference: Zhao et al. 2023, arXiv:2305.18901.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from girsanov.control.critics import Critic, LeastSquares
from girsanov.control.critics import income as income_of
from girsanov.control.environments.base import Environment
from girsanov.control.gaussian import ActionLaw
from girsanov.control.occupation import Discounted, OccupationSampler, Paths, killed_at, mass, simulate, starts
from girsanov.control.policies import actor_of
from girsanov.control.rates import TD, Rate
from girsanov.control.values import NetValue, Value
from girsanov.methods.base import Chunk, Method, State, Turn
from girsanov.policy import Policy
from girsanov.types import Batch, Prompts


@dataclass(frozen=True)
class AgentBatch(Batch):
    """Paths with what they teach.

    Attributes:
        reward: estimate of the objective from each path, [B].
        x, a: states and actions, [B, T, n] and [B, T, m].
        advantage: ``q + gamma H``, [B, T].
        weight: of the occupation time, [B, T].
        at: a state of each path drawn from the occupation time, [B, n].
        target: what a critic's network is regressed on, [B, T].
        discount: weights of that regression, [B, T].
        old_mean, old_tril: the policy before the first of several updates, [B, T, m] and [B, T, m, m].
    """

    reward: Tensor
    x: Tensor
    a: Tensor
    advantage: Tensor
    weight: Tensor
    at: Tensor
    target: Tensor | None = None
    discount: Tensor | None = None
    old_mean: Tensor | None = None
    old_tril: Tensor | None = None

    @property
    def old(self) -> ActionLaw | None:
        """The law before the first update at the B T states, if it was kept."""
        if self.old_mean is None or self.old_tril is None:
            return None
        return ActionLaw(self.old_mean.flatten(0, 1), self.old_tril.flatten(0, 1))


@dataclass(frozen=True, kw_only=True)
class Agent(Method, ABC):
    """A policy optimiser for an environment.

    Attributes:
        environment: what it acts in.
        critic: how the value is learned.
        rate: how q is estimated from it.
        occupation: which steps count how much.
    """

    environment: Environment
    critic: Critic = field(default_factory=LeastSquares)
    rate: Rate = field(default_factory=TD)
    occupation: OccupationSampler = field(default_factory=Discounted)

    def __post_init__(self) -> None:
        self.network  # noqa: B018 (a critic of the wrong shape is told before anything is run)

    @cached_property
    def network(self) -> nn.Module | None:
        """The critic's network, if it has one."""
        return self.critic.network(self.environment)

    def modules(self) -> dict[str, nn.Module]:
        """The critic's network."""
        return {} if self.network is None else {"critic": self.network}

    def setup(self, policy: Policy) -> State:
        """The network in the policy's dtype; the critic's state is empty."""
        actor_of(policy, self.environment)
        if self.network is not None:
            self.network.to(policy.dtype)
        return {"critic": {}}

    def value(self, state: State) -> Value:
        """The value function as it stands."""
        return self.critic.value(self.environment, self.network, state["critic"])

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> AgentBatch:
        """Runs a path for every request, fits the critic and estimates q along the paths."""
        env, actor = self.environment, actor_of(policy, self.environment)
        noise = turn.noise(prompts.ids)
        uniform = noise.uniform()
        weight = self.occupation.weights(env, uniform).to(policy.dtype)
        steps = weight.shape[1]
        start = starts(env, noise, policy.dtype)
        paths = simulate(env, actor, start, noise.normal((steps, env.noise_dim + env.action_dim), policy.dtype))
        value = self.critic.fit(env, self.network, paths, state["critic"], turn.reduce)
        q = self.rate(env, paths, value, weight, turn.reduce)
        advantage = q + env.entropy * paths.entropy
        level = turn.reduce.mean((weight * advantage).sum()) / turn.reduce.mean(weight.sum())
        target = self.critic.targets(env, paths, value)
        gone = torch.exp(-env.discount * env.dt * torch.arange(steps + 1).to(start))
        when = killed_at(env, uniform).clamp_max(steps - 1)
        return AgentBatch(
            reward=self.worth(paths, value, gone),
            x=paths.states,
            a=paths.a,
            advantage=advantage - level,
            weight=weight,
            at=paths.x[torch.arange(len(when)), when],
            target=target,
            discount=None if target is None else gone[:-1].expand(len(start), steps) / gone[:-1].mean() / steps,
        )

    def worth(self, paths: Paths, value: Value, gone: Tensor) -> Tensor:
        """``sum_k delta^k rho_k h + delta^T V(X_T)``, [B]: the objective, whatever the horizon."""
        earned = (income_of(self.environment, paths) * gone[:-1]).sum(1) * self.environment.dt
        return earned + gone[-1] * value(paths.x[:, -1])

    def law(self, policy: Policy, batch: AgentBatch) -> ActionLaw:
        """The current policy at the B T states of a batch."""
        return actor_of(policy, self.environment)(batch.x.flatten(0, 1))

    def with_old(self, policy: Policy, batch: AgentBatch) -> AgentBatch:
        """The batch with the law that is current now as the old one."""
        with torch.no_grad():
            law = self.law(policy, batch)
        shape = batch.x.shape[:2]
        tril = law.tril.expand(len(law.mean), -1, -1)
        return dataclasses.replace(batch, old_mean=law.mean.unflatten(0, shape), old_tril=tril.unflatten(0, shape))

    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """The policy's loss and, where there is a network, the critic's."""
        assert isinstance(batch, AgentBatch)
        yield self.objective(policy, batch, state)
        if self.network is not None and batch.target is not None and batch.discount is not None:
            v = NetValue(self.network)(batch.x.flatten(0, 1)).view_as(batch.target)
            loss = (batch.discount * (v - batch.target).square()).sum(1).mean()
            yield Chunk(loss, {"critic_rms": loss.detach().sqrt()}, "critic")

    @abstractmethod
    def objective(self, policy: Policy, batch: AgentBatch, state: State) -> Chunk:
        """The loss of the policy: less the surrogate of the objective."""

    def density(self, weight: Tensor) -> Tensor:
        """Weights of a mean over the occupation time, [B, T] (their mean over paths sums to 1)."""
        return weight / mass(self.environment)


def spread_of(advantage: Tensor, weight: Tensor) -> float:
    """Standard deviation of single advantages under the occupation time."""
    return math.sqrt(float((weight * advantage.square()).sum() / weight.sum()))
