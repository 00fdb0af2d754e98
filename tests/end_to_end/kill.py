"""Runs the mixture recipe once in peace and once under SIGKILL, five times at moments it does not choose.

One of them is in the middle of a checkpoint; the run goes on each time. Every attempt is a fork of this process, so
that nothing is imported twice.
"""

import importlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from girsanov.checkpoint import DRAFT
from girsanov.launch import Launch, device_of, execute

for late in ("torch._dynamo", "matplotlib.backends.backend_agg", "girsanov.report", "girsanov.recipes.mixture"):
    importlib.import_module(late)  # what a run imports as it goes

SETTINGS = {
    "method": {"kind": "ode-am", "grid": {"n": 4}},
    "train": {"iterations": 24, "ema": 0.9},
    "batch": 16,
    "width": 8,
    "samples": 50,
    "grid": {"n": 4},
    "evaluate_every": 8,
    "checkpoint_every": 3,
}


def run(out: Path) -> None:
    """A new run, or the next part of one."""
    going_on = (out / "run.json").exists()
    launch = Launch.existing(out) if going_on else Launch.new("mixture", [SETTINGS], out, "test")
    execute(launch, device=device_of("cpu"), resume=going_on, quiet=True)


def attempt(out: Path) -> int:
    """Forks a process that runs; its id."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        try:
            run(out)
        finally:
            os._exit(0)
    return child


def kill_when(out: Path, moment: str, random_numbers: random.Random) -> str:
    """Starts an attempt and kills it at the moment: "write" (a draft is on the disk) or after some new lines."""
    child, metrics = attempt(out), out / "metrics.jsonl"
    lines = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    wanted = lines + random_numbers.randint(3, 5)
    end = time.monotonic() + 120
    while time.monotonic() < end:
        draft = list((out / "checkpoints").glob(f"{DRAFT}*")) if moment == "write" and metrics.exists() else []
        found = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        if draft and found > lines or moment != "write" and found >= wanted:
            time.sleep(0 if draft else random_numbers.random() * 0.01)
            break
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            raise SystemExit("the run ended before it could be killed")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    drafts = list((out / "checkpoints").glob(f"{DRAFT}*"))
    return "in a write" if drafts else "between"


def main(root: Path) -> None:
    """Prints when each kill came."""
    os.waitpid(attempt(root / "peace"), 0)
    random_numbers = random.Random(0)
    for moment in ("line", "write", "line", "line", "line"):
        print(kill_when(root / "killed", moment, random_numbers), flush=True)
    os.waitpid(attempt(root / "killed"), 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
