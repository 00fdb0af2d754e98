r"""The environments through Gymnasium: one copy, or a batch of copies that are stepped together.

    import gymnasium
    env = gymnasium.make("girsanov.control.gym:Girsanov/lq-v0", dt=0.02)
    envs = gymnasium.make_vec("girsanov.control.gym:Girsanov/lq-v0", num_envs=4096)

The reward of a step is ``r(x, a) dt``; the entropy is the agent's to add, ``entropy_per_step = gamma dt`` times the
entropy of its policy. The discount can be had in two ways:

    time limit   the agent discounts, with ``gamma_per_step = exp(-beta dt)``. Episodes are *truncated* at ``horizon``,
                 when 1 % of the discount is left by default: bootstrap from the last state. ``info["discount"]`` is
                 the weight ``exp(-beta t)`` of the reward that came with it.
    killing      every step is an episode's last with probability ``1 - exp(-beta dt)``, the chance that an exponential
                 time of rate beta ends in it. That is a *termination*: nothing follows. The sum of rewards without
                 any discount has the discounted value as its mean, so ``gamma_per_step`` is 1.

Actions beyond ``bound`` are clipped, as Gymnasium's boxes want. Needs the extra ``rl``: pip install 'girsanov[rl]'.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from girsanov.control.environments import ENVIRONMENTS, Environment
from girsanov.errors import GirsanovError
from girsanov.noise import generator
from girsanov.settings import unknown

try:
    import gymnasium
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
except ImportError:
    raise GirsanovError("the Gymnasium interface needs the package gymnasium: pip install 'girsanov[rl]'") from None

LEFT = 0.01  # of the discount, at the default time limit


def build(environment: Environment | str, parameters: Mapping[str, Any]) -> Environment:
    """An environment by its name and parameters, or as it is."""
    if isinstance(environment, Environment):
        if parameters:
            raise GirsanovError(f"{', '.join(parameters)}: set these where the environment is made, or give its name")
        return environment
    if environment not in ENVIRONMENTS:
        raise GirsanovError(f"{environment!r} {unknown(environment, ENVIRONMENTS, 'environment')}")
    return ENVIRONMENTS[environment](**parameters)


class Episodes:
    """n copies of an environment, their clocks and their ends.

    Args:
        environment: of which.
        n: copies.
        killing, horizon, bound: see the module; a horizon of None is the default one.
    """

    def __init__(self, environment: Environment, n: int, killing: bool, horizon: float | None, bound: float) -> None:
        if not bound > 0:
            raise GirsanovError(f"the bound of the actions must be above 0, not {bound}")
        if horizon is None:
            horizon = math.inf if killing else -math.log(LEFT) / environment.discount
        if not horizon > 0:
            raise GirsanovError(f"the horizon must be above 0, not {horizon}")
        self.environment, self.n, self.bound = environment, n, bound
        steps = horizon / environment.dt
        self.limit = math.ceil(steps - 1e-9) if math.isfinite(steps) else math.inf
        survive = math.exp(-environment.discount * environment.dt)
        self.death = 1 - survive if killing else 0.0
        self.gamma = 1.0 if killing else survive
        box = gymnasium.spaces.Box
        self.observation_space = box(-np.inf, np.inf, (environment.state_dim,), np.float32)
        self.action_space = box(-bound, bound, (environment.action_dim,), np.float32)
        self._rewind()
        self.generator: torch.Generator | None = None

    def seed(self, seed: int) -> None:
        """Starts the random numbers anew."""
        self.generator = generator((seed,))

    def reset(self) -> Tensor:
        """Start states of all copies, [n, state_dim]."""
        self.x = self.environment.start(self.n, self.generator)
        self._rewind()
        return self.x

    def _rewind(self) -> None:
        self.clock = torch.zeros(self.n, dtype=torch.int32)
        self.discount = torch.ones(self.n, dtype=torch.float64)  # weight of the next reward in the value

    def renew(self, which: Tensor) -> None:
        """New episodes for the copies in the mask [n]."""
        fresh = self.environment.start(self.n, self.generator)
        self.x = torch.where(which[:, None], fresh, self.x)
        self.clock = torch.where(which, 0, self.clock)
        self.discount = torch.where(which, 1.0, self.discount)

    def step(self, actions: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Rewards, terminations and truncations, [n] each, of one step with actions [n, action_dim]."""
        a = torch.as_tensor(np.asarray(actions, dtype=np.float32))
        env = self.environment
        env.check(self.x, a)
        a = a.clamp(-self.bound, self.bound)
        reward = env.dt * env.reward(self.x, a)
        noise = torch.randn(self.n, env.noise_dim, generator=self.generator)
        self.x = env.step(self.x, a, noise)
        self.clock, self.discount = self.clock + 1, self.discount * self.gamma
        dead = torch.rand(self.n, generator=self.generator) < self.death if self.death else torch.zeros(self.n) > 0
        return reward, dead, (self.clock >= self.limit) & ~dead


class GymEnvironment(gymnasium.Env[np.ndarray, np.ndarray]):
    """One copy of an environment.

    Args:
        environment: its name in ENVIRONMENTS, or itself.
        killing: end episodes at an exponential time in place of discounting.
        horizon: time after which an episode is cut; by default 1 % of the discount is left then (never, with killing).
        bound: largest size of an action.
        parameters: fields of the environment, where it is named.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self,
        environment: Environment | str = "lq",
        *,
        killing: bool = False,
        horizon: float | None = None,
        bound: float = 10.0,
        **parameters: Any,
    ) -> None:
        self.environment = build(environment, parameters)
        self.episodes = Episodes(self.environment, 1, killing, horizon, bound)
        self.observation_space = self.episodes.observation_space
        self.action_space = self.episodes.action_space
        self.gamma_per_step = self.episodes.gamma
        self.entropy_per_step = self.environment.entropy * self.environment.dt

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A state to start from, [state_dim]."""
        super().reset(seed=seed)
        if seed is not None or self.episodes.generator is None:
            self.episodes.seed(int(self.np_random.integers(2**62)))
        return self.episodes.reset()[0].numpy(), {"discount": 1.0}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """State, ``r dt``, terminated, truncated and info after an action [action_dim]."""
        weight = float(self.episodes.discount[0])
        reward, dead, late = self.episodes.step(np.asarray(action)[None])
        return self.episodes.x[0].numpy(), float(reward[0]), bool(dead[0]), bool(late[0]), {"discount": weight}


class GymVector(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Copies of an environment that are stepped together, in one process and as one tensor.

    A copy whose episode has ended starts a new one at its next step (``NEXT_STEP``: the action is ignored, the reward
    is 0) or at once (``SAME_STEP``: the last state is ``info["final_obs"]``).

    Args:
        num_envs: copies.
        environment, killing, horizon, bound, parameters: as for one copy.
        autoreset: when new episodes start.
    """

    def __init__(
        self,
        num_envs: int = 1,
        environment: Environment | str = "lq",
        *,
        killing: bool = False,
        horizon: float | None = None,
        bound: float = 10.0,
        autoreset: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **parameters: Any,
    ) -> None:
        if num_envs < 1:
            raise GirsanovError(f"at least one copy is needed, not {num_envs}")
        self.environment = build(environment, parameters)
        self.episodes = Episodes(self.environment, num_envs, killing, horizon, bound)
        self.num_envs = num_envs
        self.single_observation_space = self.episodes.observation_space
        self.single_action_space = self.episodes.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.gamma_per_step = self.episodes.gamma
        self.entropy_per_step = self.environment.entropy * self.environment.dt
        self.autoreset = AutoresetMode(autoreset)
        if self.autoreset is AutoresetMode.DISABLED:
            raise GirsanovError("copies start anew by themselves: choose the autoreset mode NextStep or SameStep")
        self.metadata = {"render_modes": [], "autoreset_mode": self.autoreset}
        self.ended = torch.zeros(num_envs, dtype=torch.bool)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """States to start from, [num_envs, state_dim]; one seed for all copies."""
        super().reset(seed=seed)
        if seed is not None or self.episodes.generator is None:
            self.episodes.seed(int(self.np_random.integers(2**62)))
        self.ended = torch.zeros(self.num_envs, dtype=torch.bool)
        return self.episodes.reset().numpy(), {"discount": np.ones(self.num_envs)}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """States [num_envs, state_dim], rewards ``r dt``, terminations, truncations, [num_envs] each, and infos."""
        info: dict[str, Any] = {"discount": self.episodes.discount.numpy()}
        reward, dead, late = self.episodes.step(actions)
        if self.autoreset is AutoresetMode.NEXT_STEP and bool(self.ended.any()):
            reward, dead, late = reward.masked_fill(self.ended, 0), dead & ~self.ended, late & ~self.ended
            self.episodes.renew(self.ended)
        self.ended = dead | late
        if self.autoreset is AutoresetMode.SAME_STEP and bool(self.ended.any()):
            info |= {"final_obs": self.episodes.x.numpy(), "_final_obs": self.ended.numpy()}
            self.episodes.renew(self.ended)
        rewards = reward.double().numpy()
        return self.episodes.x.numpy(), rewards, dead.numpy(), late.numpy(), info


def register() -> None:
    """Tells Gymnasium about every environment, as ``Girsanov/<name>-v0``."""
    for name in ENVIRONMENTS:
        if f"Girsanov/{name}-v0" not in gymnasium.registry:
            gymnasium.register(
                f"Girsanov/{name}-v0",
                entry_point="girsanov.control.gym:GymEnvironment",
                vector_entry_point="girsanov.control.gym:GymVector",
                kwargs={"environment": name},
            )


register()
