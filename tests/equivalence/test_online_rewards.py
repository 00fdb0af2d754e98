"""Online methods with rewards in the background: the same training, to rounding; failures end or pass as documented."""

import dataclasses

import pytest
import torch

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.continuous import CTRL, CTRLRatio
from girsanov.methods.forward.nft import DiffusionNFT
from girsanov.methods.policy_gradient.clipped import ClippedPG
from girsanov.models import Model
from girsanov.nets.mlp import MLP, MLPConfig
from girsanov.nets.skip import NoSkip
from girsanov.nets.value import DenoisedReward
from girsanov.policy import Policy
from girsanov.processes import RectifiedFlow
from girsanov.prompts import ClassPrompts
from girsanov.rewards.combine import WeightedSum
from girsanov.rewards.function import FunctionReward
from girsanov.rewards.pool import Drop, PooledReward
from girsanov.rewards.workers import Threads
from girsanov.samplers.gddim import GDDIM
from girsanov.samplers.heun import Heun
from girsanov.train import TrainConfig, fit

PROMPTS = ClassPrompts(num_classes=3, groups_per_batch=4, group_size=4)
METHODS = {
    "clipped-pg": lambda reward: ClippedPG(reward=reward, sampler=GDDIM(1.0), grid=Grid.uniform(4)),
    "ctrl": lambda reward: CTRL(reward=reward, grid=Grid.uniform(4), value=DenoisedReward(NoSkip())),
    "ctrl-ratio": lambda reward: CTRLRatio(reward=reward, grid=Grid.uniform(4)),
    "nft": lambda reward: DiffusionNFT(reward=reward, sampler=Heun(), grid=Grid.uniform(4), draws=2),
}


def policy():
    torch.manual_seed(0)
    net = MLP(MLPConfig(shape=(2,), width=16, blocks=1, embed=8, classes=3)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return Policy(Model(net, RectifiedFlow(), "velocity", (2,)))


def sums(x, meta):
    return x.sum(1) + torch.tensor(meta)


def spread(x, meta):
    return -x.square().sum(1)


def trained(method):
    """The parameters after three iterations, and the metrics of each."""
    seen = []

    class Keep:
        def start(self, run):
            pass

        def iteration(self, run, metrics):
            seen.append(metrics)

        def end(self, run):
            pass

    run = fit(policy(), method, PROMPTS, TrainConfig(iterations=3, seed=1, lr=0.01), [Keep()])
    return torch.cat([p.detach().flatten() for p in run.policy.parameters()]), seen


@pytest.mark.parametrize("name", METHODS)
def test_the_background_changes_nothing(name):
    parts = [FunctionReward(sums, differentiable=False), FunctionReward(spread, differentiable=False)]
    plain, before = trained(METHODS[name](WeightedSum(parts, [1.0, 0.5])))
    pools = [PooledReward(part, workers=Threads(2), chunk=3) for part in parts]
    method = dataclasses.replace(METHODS[name](WeightedSum(pools, [1.0, 0.5])), rollout_micro_batch=5)
    pooled, after = trained(method)
    for pool in pools:
        pool.close()
    moved = (plain - trained(METHODS[name](FunctionReward(lambda x, m: 0 * x[:, 0], differentiable=False)))[0]).abs()
    assert moved.max() > 1e-3  # the reward matters
    torch.testing.assert_close(pooled, plain, rtol=0, atol=1e-9)
    assert [m["reward"] for m in after] == pytest.approx([m["reward"] for m in before], rel=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_a_dropped_sample_is_left_out_and_the_run_goes_on(name):
    def sometimes(x, meta):
        return torch.where(x[:, 0] > 0.3, float("nan"), x.sum(1))

    with PooledReward(sometimes, on_failure=Drop()) as pool:
        weights, metrics = trained(METHODS[name](pool))
    assert weights.isfinite().all()
    assert all(0 < m["dropped"] < 0.7 for m in metrics)
    assert all(m["grad_norm"] > 0 for m in metrics)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_whose_reward_always_fails_goes_on_without_learning(name):
    def never(x, meta):
        raise OSError("no disk")

    with PooledReward(never, on_failure=Drop()) as pool:
        _, metrics = trained(METHODS[name](pool))
    assert all(m["dropped"] == 1.0 and m["grad_norm"] == 0.0 for m in metrics)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_ends_with_the_sentence_of_its_reward(name):
    def breaks(x, meta):
        raise ValueError("no font")

    said = "the reward 'breaks' raised ValueError: no font "
    said += f"(test_online_rewards.py, line {breaks.__code__.co_firstlineno + 1}); mend it, or let failures pass with "
    with PooledReward(breaks) as pool, pytest.raises(GirsanovError) as error:
        trained(METHODS[name](pool))
    assert str(error.value) == said + "on_failure=drop"
    with pytest.raises(GirsanovError) as error:
        trained(METHODS[name](FunctionReward(breaks, differentiable=False)))
    assert str(error.value) == said + "PooledReward(..., on_failure=drop)"
