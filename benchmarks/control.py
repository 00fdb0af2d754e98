"""How many environment steps per second one core makes, and what bounds them: one JSON line per figure.

    OMP_NUM_THREADS=1 python benchmarks/control.py

Copies of an environment advance together, float32, and a step always comes with its reward. ``noise`` is the bound: two
standard normal numbers for every copy and step and nothing else. Then, each with what the one before has:

    bare        the noise of the environment, a step and a reward; the action is given
    environment and the noise of the action, ``a = mean + std z``: the figure that the target is about
    generic     the same with the step that every environment inherits and the reward as it is written on paper
    policy      and a network of two hidden layers of 32 that gives the mean
    gymnasium   the vector environment: clipping, checks, ends of episodes and numpy arrays, actions given

Rates are the best and the median of the repeats, in steps of one copy per processor second of one thread (wall seconds
with ``--wall``).
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch
from torch import nn

from girsanov.control import ENVIRONMENTS
from girsanov.control.environments.base import Environment

STD = 0.2


def seconds(clock, repeats, rounds, action):
    """Seconds of one round, for every repeat; a repeat before them warms up."""
    times = []
    for _ in range(repeats + 1):
        start = clock()
        for _ in range(rounds):
            action()
        times.append((clock() - start) / rounds)
    return times[1:]


def on_paper(env, x, a):
    """The reward of ``lq`` in the order of its formula."""
    cost = env.M / 2 * x**2 + env.R * x * a + env.N / 2 * a**2 + env.P * x + env.Q * a
    return -cost[:, 0]


class Copies:
    """Copies of an environment and one function for every figure."""

    def __init__(self, env, n):
        self.env, self.n = env, n
        self.generator = torch.Generator().manual_seed(0)
        self.x = env.start(n, self.generator)
        self.mean = torch.full((n, env.action_dim), -0.5)
        self.net = nn.Sequential(
            nn.Linear(env.state_dim, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, env.action_dim)
        )

    def draw(self, width):
        return torch.randn(self.n, width, generator=self.generator)

    def noise(self):
        self.draw(self.env.noise_dim), self.draw(self.env.action_dim)

    def bare(self):
        reward = self.env.reward(self.x, self.mean)
        self.x = self.env.step(self.x, self.mean, self.draw(self.env.noise_dim))
        return reward

    def environment(self):
        a = torch.add(self.mean, self.draw(self.env.action_dim), alpha=STD)
        reward = self.env.reward(self.x, a)
        self.x = self.env.step(self.x, a, self.draw(self.env.noise_dim))
        return reward

    def generic(self):
        a = self.mean + STD * self.draw(self.env.action_dim)
        reward = on_paper(self.env, self.x, a)
        self.x = Environment.step(self.env, self.x, a, self.draw(self.env.noise_dim))
        return reward

    def policy(self):
        a = torch.add(self.net(self.x), self.draw(self.env.action_dim), alpha=STD)
        reward = self.env.reward(self.x, a)
        self.x = self.env.step(self.x, a, self.draw(self.env.noise_dim))
        return reward

    def gymnasium(self):
        if not hasattr(self, "envs"):
            from girsanov.control.gym import GymVector

            self.envs = GymVector(self.n, self.env)
            self.envs.reset(seed=0)
            self.actions = np.asarray(self.mean)
        return self.envs.step(self.actions)


def report(name, copies, figure, args):
    clock = time.perf_counter if args.wall else time.process_time
    times = seconds(clock, args.repeats, args.rounds, getattr(copies, figure))
    row = {"figure": figure, "environment": name, "copies": copies.n}
    row["million_steps_per_s"] = round(copies.n / min(times) / 1e6, 2)
    row["median"] = round(copies.n / statistics.median(times) / 1e6, 2)
    if name == "lq" and figure == "environment" and copies.n == 4096:
        row["target"] = "above 20"
    assert bool(torch.isfinite(copies.x).all()), "the copies have left the real line"
    print(json.dumps(row), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--copies", type=int, default=4096)
    parser.add_argument("--environments", nargs="+", default=list(ENVIRONMENTS))
    parser.add_argument("--wall", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        for name in args.environments:
            copies = Copies(ENVIRONMENTS[name](), args.copies)
            more = ("generic", "policy", "gymnasium") if name == "lq" else ()
            for figure in ("noise", "bare", "environment", *more):
                report(name, copies, figure, args)


if __name__ == "__main__":
    main()
