"""What one iteration of ODE adjoint matching takes over the sum of its counted passes: one JSON line per figure.

    python benchmarks/ode_am.py

The iteration is ``collect``, ``losses`` and the backward passes, with full weights. The passes, run side by side on the
same shapes: N of the current network without a graph, K of the reference with their VJP in x (K - 1 with it and one
without: the window's first step needs none), one VJP of the reward, K of the trainable network with the gradient of
its parameters. Heun: twice as many. The aim is a ratio below 1.10.

Ratios are medians over repeats in which both sides run in turn, in processor seconds of one thread (wall seconds with
``--wall``, for a machine of one's own; on a GPU it is always wall seconds).
"""

import argparse
import json
import statistics
import time

import torch

from girsanov.grids import Grid
from girsanov.methods.adjoint.ode import ODEAdjointMatching
from girsanov.methods.base import Turn
from girsanov.models import Model
from girsanov.nets import NETS
from girsanov.policy import Policy
from girsanov.processes import RectifiedFlow
from girsanov.rewards.base import Reward
from girsanov.samplers import Euler, Heun
from girsanov.types import Cond, Prompts

SIZES = {
    "mlp": {"shape": (1, 8, 8), "width": 256, "blocks": 3},
    "dit": {"shape": (1, 16, 16)},
    "unet": {"shape": (1, 16, 16)},
}


class Bold(Reward):
    """A smooth reward that costs little."""

    name, differentiable = "bold", True

    def __call__(self, x, prompts):
        return torch.tanh(x).flatten(1).mean(1)


def passes(policy, reward, x, t, cond, prompts, counts):
    """The counted passes alone."""
    current, reference = policy.view("current"), policy.view("reference")
    with torch.no_grad():
        for _ in range(counts["free"]):
            y = current(x, t, cond)
    for i in range(counts["reference"]):
        z = x.detach().requires_grad_(i > 0)
        v = reference(z, t, cond)
        if i > 0:
            torch.autograd.grad(v, z, y)
    z = x.detach().requires_grad_(True)
    torch.autograd.grad(reward(z, prompts).sum(), z)
    for _ in range(counts["trained"]):
        (current(x, t, cond) - y).square().mean().backward()


def iteration(method, policy, prompts, turn):
    """One iteration without the optimiser."""
    batch = method.collect(policy, prompts, {}, turn)
    for chunk in method.losses(policy, batch, {}):
        chunk.loss.backward()


def measure(name, sampler, stages, steps, last, batch, repeats, clock, device):
    config = NETS[name](**SIZES[name])
    model = Model(config.build(0).to(device), RectifiedFlow(), "velocity", config.shape)
    policy, reward = Policy(model), Bold()
    index = torch.zeros(batch, dtype=torch.int64)
    prompts = Prompts(Cond({}, index), torch.arange(batch), torch.arange(batch)).to(device)
    method = ODEAdjointMatching(reward=reward, sampler=sampler, grid=Grid.uniform(steps), last=last)
    turn = Turn(0, 0, device=torch.device(device))
    counts = {"free": stages * steps, "reference": stages * last, "trained": stages * last}
    x, t = torch.randn(batch, *config.shape, device=device), torch.tensor(0.5, dtype=torch.float64)
    whole, parts = [], []
    for repeat in range(repeats + 1):
        policy.net.zero_grad(set_to_none=True)
        first = clock()
        iteration(method, policy, prompts, turn)
        middle = clock()
        policy.net.zero_grad(set_to_none=True)
        start = clock()
        passes(policy, reward, x, t, prompts.cond, prompts, counts)
        if repeat:  # the first one warms up
            whole.append(middle - first)
            parts.append(clock() - start)
    ratio = statistics.median(a / b for a, b in zip(whole, parts, strict=True))
    line = {"figure": "ode_am", "net": name, "solver": type(sampler).__name__, "N": steps, "K": last, "batch": batch}
    print(json.dumps({**line, "seconds": round(statistics.median(whole), 4), "ratio": round(ratio, 3)}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, default=64, help="of the MLP; the image networks take a quarter")
    parser.add_argument("--wall", action="store_true")
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.perf_counter if chosen.wall else time.process_time
    if chosen.device.startswith("cuda"):

        def clock():
            torch.cuda.synchronize()
            return time.perf_counter()

    for name in SIZES:
        for sampler, stages in ((Euler(), 1), (Heun(), 2)):
            batch = chosen.batch if name == "mlp" else chosen.batch // 4
            measure(name, sampler, stages, 20, 3, batch, chosen.repeats, clock, chosen.device)
    measure("mlp", Euler(), 1, 20, 20, chosen.batch, chosen.repeats, clock, chosen.device)


if __name__ == "__main__":
    main()
