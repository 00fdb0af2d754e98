"""How much of a reward's time hides behind the rollout: a small DiT, a reward that sleeps, one JSON line per figure.

    python benchmarks/reward_overlap.py

``share`` is the reward's time for a micro-batch over that of its rollout. ``hidden`` is the part of the reward's total
time that the pool takes off the wall clock; with m micro-batches at most ``(m - 1) / m`` of it can be, since nothing
is left to roll out behind the last. The median of the repeats is printed, with the smallest and the largest.
"""

import argparse
import json
import statistics
import time

import torch

from girsanov.grids import Grid
from girsanov.methods.base import Turn
from girsanov.methods.online import sample_and_score
from girsanov.models import Model
from girsanov.nets.dit import DiT, DiTConfig
from girsanov.processes import RectifiedFlow
from girsanov.prompts import ClassPrompts
from girsanov.rewards.function import FunctionReward
from girsanov.rewards.pool import PooledReward
from girsanov.rewards.workers import Threads
from girsanov.samplers.gddim import GDDIM


def sleeps(seconds):
    """A reward that takes this long for a call and no processor."""

    def fn(images, labels):
        time.sleep(seconds)
        return images.flatten(1).mean(1)

    return FunctionReward(fn, "sleeps", differentiable=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--micro-batches", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # one core computes; the reward sleeps
    net = DiT(DiTConfig(shape=(1, 8, 8), classes=10)).requires_grad_(False)
    model = Model(net, RectifiedFlow(), "velocity", (1, 8, 8))
    grid, turn = Grid.uniform(10), Turn(0, 0)
    prompts = ClassPrompts(num_classes=10, groups_per_batch=16, group_size=8).batch(0)
    x_T = turn.noise(prompts.ids).normal((1, 8, 8))
    micro_batch = -(-len(prompts) // args.micro_batches)
    count = -(-len(prompts) // micro_batch)

    def collect(reward):
        start = time.perf_counter()
        _, pending = sample_and_score(model, GDDIM(1.0), grid, x_T, prompts, reward, turn, micro_batch=micro_batch)
        pending.result()
        return time.perf_counter() - start

    collect(sleeps(0.0))  # warm
    alone = [collect(sleeps(0.0)) for _ in range(args.repeats)]
    per_rollout = statistics.median(alone) / count
    print(json.dumps({"figure": "rollout_s", "samples": len(prompts), "micro_batches": count, **spread(alone)}))
    for share in (0.25, 0.5, 0.9, 1.5):
        seconds = share * per_rollout
        foreground, background = [], []
        with PooledReward(sleeps(seconds), workers=Threads(1)) as pooled:
            for _ in range(args.repeats):  # taken in turns, so that a busy machine slows both alike
                foreground.append(collect(sleeps(seconds)))
                background.append(collect(pooled))
        saved = statistics.median(foreground) - statistics.median(background)
        line = {"share": share, "reward_s": round(count * seconds, 4), "hidden": round(saved / (count * seconds), 3)}
        line |= {"possible": round((count - 1) / count * min(1.0, 1.0 / share), 3)}
        print(json.dumps({"figure": "foreground_s", "share": share, **spread(foreground)}))
        print(json.dumps({"figure": "background_s", "share": share, **spread(background)}))
        print(json.dumps({"figure": "hidden_reward_time", **line}))


def spread(seconds):
    """Median, smallest and largest."""
    return {k: round(f(seconds), 4) for k, f in {"median": statistics.median, "min": min, "max": max}.items()}


if __name__ == "__main__":
    main()
