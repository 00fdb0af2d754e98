r"""PPO of stable-baselines3 on our environments, as a baseline: the same copies, starts, budget and policy class.

A step earns ``r dt`` and is discounted by ``exp(-beta dt)``; the entropy weight is ``gamma dt`` and advantages are not
normalised, so that its objective is ``dt`` times that of the agents: with a policy of one std for all states the
entropy of later steps adds a constant, which PPO's value may leave out. The policy is affine, the value a network with
two hidden layers of 64. Copies run for a horizon, are cut off there, and the value of the last state is added (a time
limit).

``gae_lambda`` of PPO is a number a *step*: at 0.95 its memory is ``20 dt`` long, and shrinks with dt.
``lambda = exp(-kappa dt)`` keeps it as it is in time.

References: Schulman et al. 2017, arXiv:1707.06347 (PPO); Raffin et al. 2021, JMLR 22(268) (stable-baselines3).
Needs the extra ``rl``: pip install 'girsanov[rl]'.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from girsanov.control.affine import AffinePolicy
from girsanov.control.environments.base import Environment
from girsanov.errors import GirsanovError
from girsanov.noise import generator

try:
    import gymnasium
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import VecEnv
except ImportError:
    raise GirsanovError("this baseline needs the package stable-baselines3: pip install 'girsanov[rl]'") from None

ENVIRONMENT_STREAM = 5_021
BOUND = 1e3  # of actions; it must be finite there, and is never reached


class Copies(VecEnv):
    """Copies of an environment that are stepped as one tensor and end together.

    Args:
        environment: of which.
        copies: how many.
        steps: after which they are cut off.
        seed: of their noise.
    """

    def __init__(self, environment: Environment, copies: int, steps: int, seed: int) -> None:
        box = gymnasium.spaces.Box
        n, m = environment.state_dim, environment.action_dim
        self.render_mode = None
        super().__init__(copies, box(-np.inf, np.inf, (n,), np.float32), box(-BOUND, BOUND, (m,), np.float32))
        self.environment, self.steps, self.clock = environment, steps, 0
        self.generator = generator((seed, ENVIRONMENT_STREAM))
        self.x = torch.zeros(copies, n)
        self.action = torch.zeros(copies, m)

    def reset(self) -> np.ndarray:
        """New first states, [copies, n]."""
        self.clock = 0
        self.x = self.environment.start(self.num_envs, self.generator)
        return self.x.numpy()

    def step_async(self, actions: np.ndarray) -> None:
        """Takes the actions [copies, m]."""
        self.action = torch.as_tensor(actions, dtype=torch.float32)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """States, rewards of the step, ends, and the last states where the time is up."""
        env = self.environment
        noise = torch.randn(self.num_envs, env.noise_dim, generator=self.generator)
        reward = env.dt * env.reward(self.x, self.action)
        self.x = env.step(self.x, self.action, noise)
        if not bool(self.x.isfinite().all()):
            raise GirsanovError("a state is not finite: PPO drives the environment away; lower its learning rate or dt")
        self.clock += 1
        over = self.clock >= self.steps
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if over:
            infos = [{"terminal_observation": x, "TimeLimit.truncated": True} for x in self.x.numpy()]
            self.reset()
        return self.x.numpy(), reward.numpy(), np.full(self.num_envs, over), infos

    def close(self) -> None:
        """Nothing is held."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The same attribute for every copy."""
        return [getattr(self, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Sets it for all."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """There is none."""
        raise GirsanovError(f"the copies have no method {method_name!r}")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """They are not."""
        return [False] * self.num_envs


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """PPO with the budget of an agent.

    Attributes:
        copies, horizon: paths an iteration, and their length in units of 1 / discount.
        iterations: how often they are run.
        epochs, minibatches: passes over a batch, and updates a pass.
        lr: falls to 0 along a line.
        trace: kappa (1 / time) of ``gae_lambda = exp(-kappa dt)``; None takes 0.95 a step.
    """

    copies: int = 32
    horizon: float = 5.0
    iterations: int = 40
    epochs: int = 10
    minibatches: int = 4
    lr: float = 3e-3
    trace: float | None = None

    def train(self, environment: Environment, start: AffinePolicy, seed: int = 0) -> AffinePolicy:
        """The policy that PPO ends at from a start with independent actions."""
        steps = math.ceil(self.horizon / (environment.discount * environment.dt) - 1e-9)
        if steps < 2:
            raise GirsanovError(
                f"a horizon of {self.horizon:g} / discount is below two steps of dt = {environment.dt:g}"
            )
        model = PPO(
            "MlpPolicy",
            Copies(environment, self.copies, steps, seed),
            learning_rate=lambda left: self.lr * left,
            n_steps=steps,
            batch_size=max(2, self.copies * steps // self.minibatches),
            n_epochs=self.epochs,
            gamma=math.exp(-environment.discount * environment.dt),
            gae_lambda=0.95 if self.trace is None else math.exp(-self.trace * environment.dt),
            ent_coef=environment.entropy * environment.dt,
            normalize_advantage=False,
            policy_kwargs={"net_arch": {"pi": [], "vf": [64, 64]}},
            seed=seed,
            device="cpu",
        )
        policy: Any = model.policy
        with torch.no_grad():
            policy.action_net.weight.copy_(start.slope)
            policy.action_net.bias.copy_(start.offset)
            policy.log_std.copy_(start.covariance.diagonal().sqrt().log())
        model.learn(self.iterations * steps * self.copies)
        weights: Sequence[Tensor] = (policy.action_net.weight, policy.action_net.bias, policy.log_std)
        slope, offset, log_std = (w.detach().double() for w in weights)
        return AffinePolicy(slope, offset, torch.diag(2 * log_std).exp() * torch.eye(len(log_std), dtype=torch.float64))
