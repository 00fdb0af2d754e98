"""How the peak memory of a training iteration grows with the number of steps T: one JSON line per figure.

    python benchmarks/memory.py

Each method runs in a process of its own: an iteration (collect, losses, backward) at a small T to load everything, one
at T = 10, one at T = 40, and the peak resident size after each. ``growth`` is the difference of the last two, a step,
in states (one state is what x_t takes); ``stored`` is the same difference of what the batch holds, counted tensor by
tensor. An iteration may grow by what it stores and no more.

Without checkpointing, full back-propagation (draft with K = T) stores the activations of every step by nature; it is
shown with checkpointing, where a step leaves its state and, with a stochastic sampler, its noise.
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys

import torch
from torch import nn

from girsanov.grids import Grid
from girsanov.methods.adjoint.matching import AdjointMatching
from girsanov.methods.adjoint.ode import ODEAdjointMatching
from girsanov.methods.base import Turn
from girsanov.methods.direct.gradient import DirectGradient
from girsanov.methods.direct.lv import DRaFTLV
from girsanov.methods.direct.refl import ReFL
from girsanov.methods.direct.truncation import LastK
from girsanov.models import Model
from girsanov.policy import Policy
from girsanov.processes import RectifiedFlow
from girsanov.rewards.base import Reward
from girsanov.samplers import GDDIM, Euler, Heun, MemorylessFlow
from girsanov.types import Cond, Prompts

SHAPE, BATCH = (1, 256, 512), 2  # a state of 1 MiB
STEPS = (10, 40)


class Pixelwise(nn.Module):
    """A network whose activations are a few states, so that states are seen."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 1, 1)

    def forward(self, x, t, cond=None):
        clock = t[:, None, None, None].expand_as(x)
        return self.outer(torch.tanh(self.inner(torch.cat([x, clock], 1))))


class Bold(Reward):
    name, differentiable = "bold", True

    def __call__(self, x, prompts):
        return torch.tanh(x).flatten(1).mean(1)


METHODS = {
    "am": lambda n: AdjointMatching(reward=Bold(), sampler=MemorylessFlow(), grid=Grid.uniform(n)),
    "ode-am": lambda n: ODEAdjointMatching(reward=Bold(), sampler=Euler(), grid=Grid.uniform(n)),
    "ode-am heun": lambda n: ODEAdjointMatching(reward=Bold(), sampler=Heun(), grid=Grid.uniform(n)),
    "ode-am-3": lambda n: ODEAdjointMatching(reward=Bold(), sampler=Euler(), grid=Grid.uniform(n), last=3),
    "draft-2": lambda n: DirectGradient(reward=Bold(), sampler=GDDIM(1.0), grid=Grid.uniform(n), truncation=LastK(2)),
    "draft checkpointed": lambda n: DirectGradient(
        reward=Bold(), sampler=GDDIM(0.0), grid=Grid.uniform(n), checkpoint=True
    ),
    "draft stochastic checkpointed": lambda n: DirectGradient(
        reward=Bold(), sampler=GDDIM(1.0), grid=Grid.uniform(n), checkpoint=True
    ),
    "draft-lv": lambda n: DRaFTLV(reward=Bold(), grid=Grid.uniform(n)),
    "refl": lambda n: ReFL(reward=Bold(), grid=Grid.uniform(n), truncation=LastK(2)),
}


def held(value, seen):
    """Bytes of the tensors in a record, each storage once."""
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        new = storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        return storage.nbytes() if new else 0
    if isinstance(value, tuple):
        return sum(held(v, seen) for v in value)
    if dataclasses.is_dataclass(value):
        return sum(held(getattr(value, f.name), seen) for f in dataclasses.fields(value))
    return 0


def iteration(method, policy, prompts):
    """One training iteration without the optimiser; the bytes its batch holds."""
    batch = method.collect(policy, prompts, {}, Turn(0, 0))
    for chunk in method.losses(policy, batch, {}):
        chunk.loss.backward()
    return held(batch, set())


def peak():
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def child(name):
    torch.set_num_threads(1)
    policy = Policy(Model(Pixelwise(), RectifiedFlow(), "velocity", SHAPE))
    index = torch.zeros(BATCH, dtype=torch.int64)
    prompts = Prompts(Cond({}, index), torch.arange(BATCH), torch.arange(BATCH))
    iteration(METHODS[name](3), policy, prompts)
    before = peak()
    stored, peaks = [], []
    for steps in STEPS:
        stored.append(iteration(METHODS[name](steps), policy, prompts))
        peaks.append(peak() - before)
    print(json.dumps({"peak": peaks, "stored": stored}))


def measure(name):
    """The growth of the peak and of what is stored, in states a step, and the peaks in bytes."""
    # Freed tensors go back to the system at once, so that the peak is what was alive.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--child", name]
    found = json.loads(subprocess.run(command, env=env, check=True, capture_output=True).stdout)
    unit = BATCH * torch.Size(SHAPE).numel() * 4 * (STEPS[1] - STEPS[0])
    growth, stored = ((found[key][1] - found[key][0]) / unit for key in ("peak", "stored"))
    return growth, stored, found["peak"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", metavar="METHOD", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        return child(chosen.child)
    for name in METHODS:
        growth, stored, peaks = measure(name)
        line = {"figure": "memory", "method": name, "T": STEPS, "growth": round(growth, 2), "stored": round(stored, 2)}
        print(json.dumps({**line, "peak_mb": [round(p / 2**20) for p in peaks]}), flush=True)


if __name__ == "__main__":
    main()
