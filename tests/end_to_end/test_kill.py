"""SIGKILL at seeded moments, one of them within the write of a checkpoint: the metrics are equal byte for byte.

One process is killed five times. Of two processes (gloo) the first is killed while it writes; among the slow tests,
either of them or both are killed at five moments, and at three when each holds a part of the network.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from girsanov.checkpoint import checkpoints, verify

ROOT = Path(__file__).resolve().parents[2]
TIME = re.compile(r', "(time|speed)/[a-z_]+": [0-9.e-]+')


def lines(path: Path) -> list[str]:
    return [TIME.sub("", line) for line in (path / "metrics.jsonl").read_text().splitlines(keepends=True)]


@pytest.mark.parametrize(
    ("name", "world", "kills"),
    [
        ("one", 1, 5),
        ("two", 2, 1),
        pytest.param("two, often", 2, 5, marks=pytest.mark.slow),
        pytest.param("two, split", 2, 3, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_killed_ends_like_one_that_is_not(tmp_path: Path, name: str, world: int, kills: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "tests.end_to_end.kill", str(tmp_path), name],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    moments = done.stdout.split("\n")
    assert len([m for m in moments if m in ("in a write", "between")]) == kills
    assert "in a write" in moments
    peace, killed = tmp_path / "peace", tmp_path / "killed"
    assert lines(killed) == lines(peace)
    assert len([line for line in lines(peace) if '"kind"' not in line]) == 24
    names = [p.name for p in checkpoints(peace / "checkpoints")]
    assert [p.name for p in checkpoints(killed / "checkpoints")] == names and names[-1] == "0000024"
    for path in checkpoints(killed / "checkpoints"):
        verify(path)
        for file in sorted(path.glob("*.safetensors")):
            assert file.read_bytes() == (peace / "checkpoints" / path.name / file.name).read_bytes()
        assert json.loads((path / "checkpoint.json").read_text())["world_size"] == world
    assert (killed / "report.html").exists()
