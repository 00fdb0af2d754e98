"""The cost of a policy gradient besides its network passes, and of its advantages; one JSON line per figure.

    python benchmarks/policy_gradient.py

``overhead``: an iteration of Flow-GRPO on the small DiT (10 steps, 9 of them trained, KL to a frozen copy of the
reference) over the time of the passes it counts, run alone: 10 + 9 without and 9 with a gradient. One thread; iteration
and passes take turns, the median of the ratios is printed with the smallest and the largest.
``advantages``: 512 samples in 64 groups, milliseconds of processor time: the reduction given tensors and groups, and
the whole call with the grouping, the checks and the way to other processes. The smallest of the repeats.
"""

import argparse
import json
import statistics
import time

import torch

from girsanov.grids import Grid
from girsanov.methods.advantages import ADVANTAGES, NORMALISERS, Groups
from girsanov.methods.base import Turn
from girsanov.methods.policy_gradient.grpo import FlowGRPO
from girsanov.models import Model
from girsanov.nets.dit import DiT, DiTConfig
from girsanov.policy import Policy
from girsanov.processes import RectifiedFlow
from girsanov.prompts import ClassPrompts
from girsanov.rewards.function import FunctionReward


def spent(work, clock):
    start = clock()
    work()
    return clock() - start


def overhead(repeats, batch):
    """Iteration over its passes."""
    net = DiT(DiTConfig(shape=(1, 8, 8), classes=10))
    policy = Policy(Model(net, RectifiedFlow(), "velocity", (1, 8, 8)))
    reward = FunctionReward(lambda x, labels: x.flatten(1).mean(1), "mean", differentiable=False)
    method = FlowGRPO(reward=reward, grid=Grid.uniform(10))
    prompts = ClassPrompts(num_classes=10, groups_per_batch=batch // 8, group_size=8).batch(0)
    x, t = torch.randn(batch, 1, 8, 8), torch.full((), 0.5, dtype=torch.float64)

    def iteration():
        found = method.collect(policy, prompts, {}, Turn(0, 0))
        for chunk in method.losses(policy, found, {}):
            chunk.loss.backward()
        net.zero_grad()

    def passes():
        current, reference = policy.view("current"), policy.view("reference")
        with torch.no_grad():
            for _ in range(10):
                current(x, t, prompts.cond)
            for _ in range(9):
                reference(x, t, prompts.cond)
        for _ in range(9):
            current(x, t, prompts.cond).sum().backward()
        net.zero_grad()

    iteration()
    passes()
    ratios = [spent(iteration, time.process_time) / spent(passes, time.process_time) - 1 for _ in range(repeats)]
    low, high = min(ratios), max(ratios)
    return {"figure": "overhead", "batch": batch, "median": statistics.median(ratios), "min": low, "max": high}


def advantages(repeats):
    """Milliseconds of each advantage."""
    group, reward = torch.arange(64).repeat_interleave(8), torch.randn(512)
    wide, groups, turn = reward.double().unsqueeze(1), Groups.of(group), Turn(0, 0)
    for name, cls in ADVANTAGES.items():
        advantage, state = cls(), {}
        row = {"figure": "advantages", "name": name}
        calls = {"call_ms": lambda a=advantage, s=state: a(reward, group, s, turn)}
        if name in NORMALISERS:
            calls["reduction_ms"] = lambda a=advantage, s=state: a.columns(wide, groups, s)
        for key, call in calls.items():
            rounds = [spent(lambda c=call: [c() for _ in range(100)], time.process_time) * 10 for _ in range(repeats)]
            row[key] = min(rounds)
        yield row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(json.dumps(overhead(args.repeats, args.batch)))
    for row in advantages(args.repeats):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
