"""The environments through Gymnasium: its checkers, seeds, time limits, killing, batches, bad input."""

import importlib
import math
import sys
import warnings

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium")
from gymnasium.utils.env_checker import check_env  # noqa: E402

from girsanov.control import ENVIRONMENTS, LQ, AffinePolicy  # noqa: E402
from girsanov.control import gym as module  # noqa: E402
from girsanov.control.gym import GymEnvironment, GymVector  # noqa: E402
from girsanov.errors import GirsanovError  # noqa: E402

EXPECTED = ("symmetric and normalized", "minimum value is -infinity", "maximum value is infinity")


@pytest.mark.parametrize("name", ENVIRONMENTS)
@pytest.mark.parametrize("killing", [False, True])
def test_the_checker_of_gymnasium_is_content(name: str, killing: bool) -> None:
    """Its only remarks are on the size of the spaces: states are unbounded, actions are not scaled to 1."""
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        env = gymnasium.make(f"girsanov.control.gym:Girsanov/{name}-v0", killing=killing, dt=0.02)
        check_env(env.unwrapped)
    assert all(any(text in str(r.message) for text in EXPECTED) for r in remarks)
    assert env.unwrapped.environment == ENVIRONMENTS[name](dt=0.02)


def walk(env: GymEnvironment, n: int, action: float = 0.3) -> np.ndarray:
    env.reset(seed=3)
    return np.array([[*env.step(np.full(1, action, np.float32))[:2]] for _ in range(n)], dtype=object)


def test_a_seed_fixes_an_episode_and_the_next_goes_on() -> None:
    env = GymEnvironment("lq")
    assert (walk(env, 5) == walk(env, 5)).all()
    first, _ = env.reset(seed=3)
    second, _ = env.reset()
    assert first != second
    env.reset(seed=3)
    assert env.reset()[0] == second


def test_rewards_and_steps_are_those_of_the_environment() -> None:
    env = GymEnvironment("lq", dt=0.1)
    x, _ = env.reset(seed=0)
    after, reward, *_, info = env.step(np.array([0.7], np.float32))
    lq, a = LQ(dt=0.1), torch.tensor([[0.7]])
    x = torch.from_numpy(x)[None]
    assert reward == pytest.approx(0.1 * float(lq.reward(x, a)), rel=1e-6)
    spread = float(lq.diffusion(x, a)) * math.sqrt(0.1)
    assert abs(float(after[0]) - float((x + 0.1 * lq.drift(x, a))[0])) < 5 * spread
    assert info == {"discount": 1.0} and env.gamma_per_step == pytest.approx(math.exp(-0.1))
    assert env.step(np.zeros(1))[-1]["discount"] == pytest.approx(math.exp(-0.1))
    assert env.entropy_per_step == pytest.approx(0.1 * 0.1)


def test_actions_beyond_the_bound_are_clipped() -> None:
    env = GymEnvironment("lq", bound=2.0)
    env.reset(seed=0)
    far = env.step(np.array([50.0]))
    env.reset(seed=0)
    near = env.step(np.array([2.0]))
    assert far[0] == near[0] and far[1] == near[1]


def test_episodes_are_truncated_where_one_per_cent_of_the_discount_is_left() -> None:
    env = GymEnvironment("lq", dt=0.05, discount=0.5)
    env.reset(seed=0)
    steps = 1
    while not (last := env.step(np.zeros(1)))[3]:
        assert not last[2]
        steps += 1
    assert steps == math.ceil(math.log(100) / 0.5 / 0.05)
    short = GymEnvironment("lq", horizon=0.1)
    short.reset(seed=0)
    assert [short.step(np.zeros(1))[3] for _ in range(2)] == [False, True]


def test_killed_returns_have_the_discounted_value_as_their_mean() -> None:
    """20000 episodes, seed 0; 4 standard errors; the exact value of the best policy, entropy taken out."""
    env = LQ(dt=0.25, discount=1.5, start_mean=0.5)
    solution = env.chain()
    envs = GymVector(20000, env, killing=True, bound=100.0, autoreset="SameStep")
    x, _ = envs.reset(seed=0)
    total, alive, lengths = np.zeros(20000), np.ones(20000, bool), np.zeros(20000)
    policy, g = solution.affine, torch.Generator().manual_seed(1)
    while alive.any():
        mean = policy.mean(torch.from_numpy(x))
        a = mean + float(policy.covariance) ** 0.5 * torch.randn(mean.shape, generator=g)
        x, reward, dead, late, _ = envs.step(a.numpy())
        assert not late.any()
        total, lengths = total + reward * alive, lengths + alive
        alive &= ~dead
    entropy = math.log(2 * math.pi * math.e * float(policy.covariance)) / 2
    expected = solution.objective - env.entropy * entropy * float(solution.occupation.L0)
    assert abs(total.mean() - expected) < 4 * total.std() / 20000**0.5
    assert abs(lengths.mean() - 1 / (1 - math.exp(-1.5 * 0.25))) < 4 * lengths.std() / 20000**0.5
    assert envs.gamma_per_step == 1.0


def test_a_batch_starts_anew_at_the_next_step_or_at_once() -> None:
    action = np.zeros((3, 1), np.float32)
    late = GymVector(3, "lq", horizon=0.1, start_mean=100.0)
    late.reset(seed=0)
    late.step(action)
    x, reward, _, ended, _ = late.step(action)
    assert ended.all() and (x < 99).all() and (reward < -100).all()
    x, reward, dead, ended, _ = late.step(action)
    assert not (ended | dead).any() and (x > 95).all() and (reward == 0).all()
    assert late.step(action)[-1]["discount"].tolist() == [1.0] * 3
    prompt = GymVector(3, "lq", horizon=0.1, start_mean=100.0, autoreset="SameStep")
    prompt.reset(seed=0)
    prompt.step(action)
    x, reward, _, ended, info = prompt.step(action)
    assert ended.all() and (x > 95).all() and (info["final_obs"] < 99).all() and (reward < -100).all()


def test_a_batch_is_made_by_gymnasium_and_wrapped_by_it() -> None:
    envs = gymnasium.make_vec("girsanov.control.gym:Girsanov/pairs-v0", num_envs=4, horizon=0.2, dt=0.1)
    assert isinstance(envs, GymVector) and envs.action_space.shape == (4, 1)
    counted = gymnasium.wrappers.vector.RecordEpisodeStatistics(envs)
    first, _ = counted.reset(seed=1)
    again, _ = counted.reset(seed=1)
    assert (first == again).all() and first.shape == (4, 2) and len(set(first[:, 0])) == 4
    counted.step(counted.action_space.sample())
    *_, info = counted.step(counted.action_space.sample())
    assert info["episode"]["l"].tolist() == [2] * 4


@pytest.mark.slow
def test_an_agent_of_stable_baselines_learns_in_it() -> None:
    """It runs; what it learns is the matter of the studies."""
    sb3 = pytest.importorskip("stable_baselines3")
    env = gymnasium.make("girsanov.control.gym:Girsanov/lq-v0", dt=0.1)
    agent = sb3.PPO("MlpPolicy", env, n_steps=64, batch_size=32, n_epochs=1, device="cpu", seed=0)
    agent.learn(128)
    action, _ = agent.predict(np.zeros(1, np.float32))
    assert action.shape == (1,)


def test_bad_input_is_refused_in_a_sentence() -> None:
    env = GymEnvironment("lq")
    env.reset(seed=0)
    envs = GymVector(3, "lq")
    envs.reset(seed=0)
    for call, message in (
        (lambda: env.step(np.array([np.nan])), "the actions hold NaN"),
        (lambda: env.step(np.zeros(2)), "actions of shape .1, 2. do not fit"),
        (lambda: envs.step(np.zeros((2, 1))), "3 states and 2 actions"),
        (lambda: GymEnvironment("lqq"), "'lqq' is no environment: did you mean lq"),
        (lambda: GymEnvironment("lq", dt=-1.0), "dt must be greater than 0"),
        (lambda: GymEnvironment(LQ(), dt=0.1), "dt: set these where the environment is made"),
        (lambda: GymEnvironment("lq", horizon=0.0), "the horizon must be above 0"),
        (lambda: GymEnvironment("lq", bound=0.0), "the bound of the actions must be above 0"),
        (lambda: GymVector(0, "lq"), "at least one copy"),
        (lambda: GymVector(2, "lq", autoreset="Disabled"), "choose the autoreset mode NextStep or SameStep"),
    ):
        with pytest.raises(GirsanovError, match=message):
            call()


def test_without_gymnasium_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.delitem(sys.modules, module.__name__)
    with pytest.raises(GirsanovError, match=r"pip install 'girsanov\[rl\]'"):
        importlib.import_module(module.__name__)


def test_a_best_policy_beats_another_here_too() -> None:
    """500 copies of the default problem, seed 0, the same noise."""
    returns = []
    env = LQ()
    for policy in (env.chain().affine, AffinePolicy.scalar(0.3, 0.5, 0.04)):
        envs = GymVector(500, env, bound=100.0)
        x, info = envs.reset(seed=0)
        total = np.zeros(500)
        for _ in range(92):
            x, reward, _, _, info = envs.step(policy.mean(torch.from_numpy(x)).numpy())
            total += info["discount"] * reward
        returns.append(total.mean())
    assert returns[0] > returns[1] + 1.0
