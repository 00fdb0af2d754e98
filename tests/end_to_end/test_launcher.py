"""``torchrun ... girsanov run digits`` on two processes, as a user types it: killed, resumed, scored by one server.

Seed 0 chooses the moments. A launcher's start takes seconds on two processes, so all of this is slow.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from girsanov.checkpoint import DRAFT
from girsanov.rewards import Bold
from girsanov.rewards.server import RewardServer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TIME = re.compile(r', "(time|speed)/[a-z_]+": [0-9.e-]+')
TINY = ("pretrain.iterations=20", "net.width=16", "samples=40", "groups=4", "group_size=4", "method.grid.n=4")
TINY += ("train.iterations=24", "evaluate_every=12", "checkpoint_every=2", "--method", "clipped-pg", "--device", "cpu")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """One thread a process, no GPU, and a cache of our own."""
    here = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GIRSANOV_CACHE": str(tmp_path_factory.mktemp("cache"))}
    yield {**os.environ, **here}


def start(out: Path, environment: dict[str, str], *options: str) -> subprocess.Popen:
    """Launches a run, or goes on with it."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    command = [sys.executable, "-m", "girsanov.cli", "run", "digits", "--out", str(out), *options]
    if (out / "run.json").exists():
        command = command[: -len(options) or None] + ["--resume", "--device", "cpu"]
    return subprocess.Popen([*launcher, *command], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finish(run: subprocess.Popen) -> None:
    """Waits for a run that nobody disturbs."""
    _, said = run.communicate(timeout=240)
    assert run.returncode == 0, said[-3000:]


def workers(run: subprocess.Popen) -> list[int]:
    """The processes of a launch, in the order of their start."""
    return [int(pid) for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]


def lines(out: Path) -> list[str]:
    metrics = out / "metrics.jsonl"
    return [TIME.sub("", line) for line in metrics.read_text().splitlines(keepends=True)] if metrics.exists() else []


@pytest.fixture(scope="module")
def peace(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The lines of a run that nobody disturbs."""
    out = tmp_path_factory.mktemp("peace") / "run"
    finish(start(out, environment, *TINY))
    found = lines(out)
    assert len([line for line in found if '"kind"' not in line]) == 24
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes of a launch in /proc")
def test_a_launch_under_sigkill_ends_like_one_in_peace(
    peace: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    """One process, then the other while a checkpoint is written, then both."""
    out, chance = tmp_path / "run", random.Random(0)
    for victims, in_write in (([1], False), ([0], True), ([0, 1], False)):
        before = len(lines(out))
        run = start(out, environment, *TINY)
        wanted, end = before + chance.randint(2, 4), time.monotonic() + 120
        while time.monotonic() < end and run.poll() is None:
            if len(lines(out)) >= wanted and (not in_write or list((out / "checkpoints").glob(f"{DRAFT}*"))):
                break
        assert run.poll() is None, run.communicate()[1][-3000:]
        found = workers(run)
        assert len(found) == 2
        for rank in victims:
            os.kill(found[rank], signal.SIGKILL)
        run.communicate(timeout=120)
        assert run.returncode != 0 and len(lines(out)) < len(peace)
    finish(start(out, environment, *TINY))
    assert lines(out) == peace
    assert (out / "report.html").exists()


def test_two_training_processes_share_a_reward_server(
    peace: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    """Each gets the scores of its own samples: the metrics are those of a run that scores for itself."""
    out = tmp_path / "run"
    with RewardServer(Bold()) as server:
        finish(start(out, environment, *TINY, "reward.kind=remote", f"reward.url={server.url}"))
    assert lines(out) == peace


@pytest.mark.parametrize("method", ["clipped-pg", "ode-am"])
def test_a_compiled_split_network_trains_as_one_that_is_not_compiled(
    method: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """The curves agree to 1e-4: a compiled network rounds in another order (float32)."""
    curves = []
    for compiled in ("false", "true"):
        options = (*TINY, "--method", method, "shard=true", "train.iterations=3", f"compile={compiled}")
        finish(start(tmp_path / compiled, environment, *options))
        rows = [json.loads(line) for line in lines(tmp_path / compiled)]
        curves.append([[row["loss"], row["reward"], row["grad_norm"]] for row in rows if "loss" in row])
    assert len(curves[0]) == 3
    assert sum(curves[1], []) == pytest.approx(sum(curves[0], []), rel=1e-4, abs=1e-5)
