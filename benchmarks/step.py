"""What a sampler step, a replay and a resimulation cost beyond what they must: one JSON line per figure.

    python benchmarks/step.py

``step``: one stochastic step with its log-ratio, the prediction and the noise given. It must read the state, the
prediction, the noise and the old mean and write the mean and the next state: six tensors, the traffic of three copies.
``ratio`` is its time over that of three copies. Where a large tensor gets fresh memory from the system (``memory``:
"fresh", the default of Linux) handing out the pages costs more than the traffic, so there the copies get as much fresh
memory as the step returns; in a second process the allocator keeps its memory ("reused", as on an accelerator) and
the copies go into mapped memory.

``replay``: all kernels of a stored chain over its bare network passes. ``resimulate``: walking the stored means with
new noise over sampling the chain with a small MLP, the noise counted on both sides.

Ratios are medians over repeats in which both sides run side by side, in processor seconds of one thread (wall seconds
with ``--wall``, for a machine of one's own).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch

from girsanov.grids import Grid
from girsanov.models import Model
from girsanov.nets import NETS
from girsanov.noise import Noise
from girsanov.processes import RectifiedFlow
from girsanov.rollout import replay, resimulate, rollout
from girsanov.samplers import GDDIM, EulerMaruyama

FLOW = RectifiedFlow()
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 30)}


def timed(clock, action):
    start = clock()
    action()
    return clock() - start


def side_by_side(clock, repeats, **actions):
    """Seconds of every action, each run once a repeat, in turn; the first repeat warms up."""
    rows = [{name: timed(clock, action) for name, action in actions.items()} for _ in range(repeats + 1)][1:]
    return {name: [row[name] for row in rows] for name in actions}


def median_ratio(above, below):
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 3)


def emit(figure, **values):
    print(json.dumps({"figure": figure, **values}), flush=True)


def step_figure(clock, repeats, megabytes, name, sampler):
    shape = (megabytes, 1, 512, 512)  # one MiB of float32 a sample
    x, p, z, old = (torch.randn(shape) for _ in range(4))
    warm = [torch.empty(shape) for _ in range(3)]
    model, step = Model(lambda x, t, c: p, FLOW, "velocity", shape[1:]), Grid.uniform(10)[4]

    def one_step():
        kernel = sampler.kernel(model, x, step)[0]
        return kernel.log_ratio(old, kernel.sample(z))

    def copies_fresh():
        return x.clone(), p.clone(), warm[2].copy_(z)

    def copies_reused():
        for to, source in zip(warm, (x, p, z), strict=True):
            to.copy_(source)

    reused = "MALLOC_MMAP_MAX_" in os.environ
    got = side_by_side(clock, repeats, step=one_step, copies=copies_reused if reused else copies_fresh)
    emit(
        "step",
        sampler=name,
        megabytes=megabytes,
        memory="reused" if reused else "fresh",
        ratio=median_ratio(got["step"], got["copies"]),
        step_s=round(statistics.median(got["step"]), 4),
        target="ratio <= 3",
    )


def replay_figure(clock, repeats, name, batch):
    net = NETS[name](shape=(1, 8, 8)).build(seed=0).requires_grad_(False)
    model, grid, ids = Model(net, FLOW, "velocity", (1, 8, 8)), Grid.uniform(20), torch.arange(batch)
    path = rollout(model, GDDIM(1.0), grid, Noise(0, 0, ids).normal((1, 8, 8)), noise=Noise(1, 0, ids))

    def passes():
        for tr in path:
            net(tr.x_t, torch.full((batch,), float(tr.step.t)), None)

    def again():
        for _ in replay(model, GDDIM(1.0), path):
            pass

    got = side_by_side(clock, repeats, replay=again, passes=passes)
    emit(
        "replay",
        net=name,
        batch=batch,
        ratio=median_ratio(got["replay"], got["passes"]),
        pass_ms=round(1e3 * statistics.median(got["passes"]) / len(grid), 3),
        target="ratio < 1.05",
    )


def resimulate_figure(clock, repeats, batch):
    shape, ids = (1, 8, 8), torch.arange(batch)
    net = NETS["mlp"](shape=shape).build(seed=0).requires_grad_(False)
    model, grid, x_T = Model(net, FLOW, "velocity", shape), Grid.uniform(20), Noise(0, 0, ids).normal(shape)
    path = rollout(model, GDDIM(1.0), grid, x_T, noise=Noise(1, 0, ids))

    def sample():
        rollout(model, GDDIM(1.0), grid, x_T, noise=Noise(2, 0, ids))

    def walk():
        for _ in resimulate(path, Noise(3, 0, ids)):
            pass

    got = side_by_side(clock, repeats, resimulate=walk, sampling=sample)
    ratio = median_ratio(got["resimulate"], got["sampling"])
    emit("resimulate", net="mlp", batch=batch, ratio=ratio, target="ratio < 0.333")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--wall", action="store_true")
    parser.add_argument("--figures", nargs="+", default=["step", "replay", "resimulate"])
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    clock = time.perf_counter if args.wall else time.process_time
    if "step" in args.figures:
        for megabytes in args.megabytes:
            step_figure(clock, args.repeats, megabytes, "gddim", GDDIM(1.0))
            step_figure(clock, args.repeats, megabytes, "euler-maruyama", EulerMaruyama(0.5))
        if "MALLOC_MMAP_MAX_" not in os.environ:  # glibc reads it when a process starts
            only = ["--figures", "step", "--repeats", str(args.repeats), *(["--wall"] if args.wall else [])]
            subprocess.run([sys.executable, __file__, *only], env=os.environ | KEEP_MEMORY, check=True)
    if "replay" in args.figures:
        for name in ("mlp", "unet", "dit"):
            replay_figure(clock, args.repeats, name, batch=128)
    if "resimulate" in args.figures:
        resimulate_figure(clock, args.repeats, batch=128)


if __name__ == "__main__":
    main()
