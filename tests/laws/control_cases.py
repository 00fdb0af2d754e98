"""A fixed policy of the linear-quadratic problem, its exact value as a critic, and paths of it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from girsanov.control import LQ, AffinePolicy, LQSolution
from girsanov.control.critics import Critic
from girsanov.control.environments import Environment
from girsanov.control.occupation import OccupationSampler, Paths, simulate, starts
from girsanov.control.policies import Actor, AffineActor
from girsanov.control.values import QuadraticValue
from girsanov.distributed import Reduce
from girsanov.methods.base import State
from girsanov.noise import Noise

F64 = torch.float64
POLICY = AffinePolicy.scalar(-0.3, -0.4, 0.25)
OTHER = AffinePolicy.scalar(-0.6, -0.7, 0.09)


def actor(environment: Environment, policy: AffinePolicy = POLICY) -> Actor:
    """The policy as an actor."""
    slope, offset = policy.slope.tolist(), policy.offset.tolist()
    config = AffineActor(slope=slope, offset=offset, std=math.sqrt(float(policy.covariance[0, 0])))
    return config.build(environment)


def walked(
    environment: LQ, sampler: OccupationSampler, copies: int, policy: AffinePolicy = POLICY, seed: int = 0
) -> tuple[Paths, Tensor]:
    """Paths of a policy and the weights of their steps."""
    noise = Noise(seed, 0, torch.arange(copies))
    weights = sampler.weights(environment, noise.uniform())
    with torch.no_grad():
        start = starts(environment, noise, F64)
        paths = simulate(environment, actor(environment, policy), start, noise.normal((weights.shape[1], 2), F64))
    return paths, weights


def z_scores(samples: Tensor, exact: Tensor | float) -> Tensor:
    """(mean - exact) / standard error, over the first axis."""
    return (samples.mean(0) - exact) / (samples.std(0) / math.sqrt(len(samples)))


@dataclass(frozen=True)
class Exact(Critic):
    """The exact value of a policy."""

    solution: LQSolution

    def value(self, environment: Environment, net: nn.Module | None, state: State) -> QuadraticValue:
        """V."""
        return QuadraticValue.of(self.solution.V)

    def fit(
        self, environment: Environment, net: nn.Module | None, paths: Paths, state: State, reduce: Reduce
    ) -> QuadraticValue:
        """V, whatever the paths."""
        return self.value(environment, net, state)
