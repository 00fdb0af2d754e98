"""Runs the mixture recipe once in peace and once under SIGKILL, at moments it does not choose.

One of them is in the middle of a checkpoint; the run goes on each time. Every attempt is a fork of this process, so
that nothing is imported twice. With two processes (gloo) each attempt is two forks, of which one, the other or both are
killed; what a launcher does with a process that is left over, this file does, too.
"""

import importlib
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
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
    "group_size": 4,
    "width": 8,
    "samples": 50,
    "grid": {"n": 4},
    "evaluate_every": 8,
    "checkpoint_every": 3,
}
KILLS: dict[str, Sequence[tuple[str, Sequence[int]]]] = {
    "one": [("line", [0]), ("write", [0]), ("line", [0]), ("line", [0]), ("line", [0])],
    "two": [("write", [0])],
    "two, often": [("line", [1]), ("write", [0]), ("line", [0, 1]), ("line", [0]), ("write", [1])],
    "two, split": [("write", [0]), ("line", [1]), ("line", [0, 1])],
}
"""When a kill comes, and which processes are killed; in a run that is split each holds a part of the network."""
LEFT_OVER = 20.0  # seconds that a process may take to see that the other is gone


def processes(name: str) -> int:
    """How many processes a run has."""
    return 1 if name == "one" else 2


def run(out: Path, name: str) -> None:
    """A new run, or the next part of one."""
    going_on = (out / "run.json").exists()
    settings = SETTINGS | {"shard": "split" in name}
    launch = Launch.existing(out) if going_on else Launch.new("mixture", [settings], out, "test")
    execute(launch, device=device_of("cpu"), resume=going_on, quiet=True)


def attempt(out: Path, name: str) -> list[int]:
    """Forks the processes of a run; their ids in the order of their ranks."""
    world = processes(name)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            if world > 1:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
                os.environ |= {k: str(v) for k, v in place.items()}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            code = 1
            try:
                run(out, name)
                code = 0
            except BaseException:  # noqa: BLE001 (nothing may return from a fork)
                if not (out / "being-killed").exists():
                    traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    return children


def in_peace(out: Path, name: str) -> None:
    """An attempt that nobody disturbs."""
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in attempt(out, name)]
    if any(codes):
        raise SystemExit(f"a run that was left in peace ended with {codes}")


def kill_when(out: Path, name: str, moment: str, victims: Sequence[int], random_numbers: random.Random) -> str:
    """Starts an attempt and kills it at the moment: "write" (a draft is on the disk) or after some new lines."""
    lines = read(out)
    children = attempt(out, name)
    wanted = lines + random_numbers.randint(3, 5)
    end = time.monotonic() + 120
    while time.monotonic() < end:
        found = read(out)
        draft = list((out / "checkpoints").glob(f"{DRAFT}*")) if moment == "write" and found else []
        if draft and found > lines or moment != "write" and found >= wanted:
            time.sleep(0 if draft else random_numbers.random() * 0.01)
            break
        if os.waitpid(children[0], os.WNOHANG) != (0, 0):
            raise SystemExit("the run ended before it could be killed")
    (out / "being-killed").touch()
    for rank in victims:
        os.kill(children[rank], signal.SIGKILL)
    for child in children:
        end_of(child)
    (out / "being-killed").unlink()
    drafts = list((out / "checkpoints").glob(f"{DRAFT}*"))
    return "in a write" if drafts else "between"


def read(out: Path) -> int:
    """Lines of the metrics."""
    metrics = out / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def end_of(child: int) -> None:
    """Waits for a process, and kills it if it waits too long for one that is gone."""
    end = time.monotonic() + LEFT_OVER
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return
        time.sleep(0.01)


def main(root: Path, name: str) -> None:
    """Prints when each kill came."""
    in_peace(root / "peace", name)
    random_numbers = random.Random(0)
    for moment, victims in KILLS[name]:
        print(kill_when(root / "killed", name, moment, victims, random_numbers), flush=True)
    in_peace(root / "killed", name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
