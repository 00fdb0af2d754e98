"""DeepSpeed's ZeRO on two processes (gloo) gives what AdamW gives on one: losses to 1e-5, in float32.

Slow: on a processor DeepSpeed compiles a library of its own the first time (a minute, and a C++ compiler).
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from girsanov.checkpoint import load
from tests.equivalence.sharded import KINDS, curve
from tests.equivalence.zero import CASES, main, new_run

ROOT = Path(__file__).resolve().parents[2]
NOT_MEANS = {"ratio_min", "ratio_max", "first/ratio_min", "first/ratio_max", "reward_std", "old_gap"}
STAGES = (1, 2)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    out = tmp_path_factory.mktemp("one")
    main(out, None)
    return out


@pytest.fixture(scope="module", params=STAGES)
def folders(request: pytest.FixtureRequest, one: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    two = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    script = [sys.executable, "-m", "tests.equivalence.zero", str(two), str(one)]
    asked = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(request.param)}
    environment = {**os.environ, **asked, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, *script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return one, two


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "found.json").read_text())
    return found


def close(a: list[dict[str, float]], b: list[dict[str, float]]) -> None:
    """Two curves agree, but for what is no mean over samples."""
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in x.keys() - NOT_MEANS:
            assert y[key] == pytest.approx(x[key], rel=1e-5, abs=1e-6), key


def test_curves_agree_with_one_process(folders: tuple[Path, Path]) -> None:
    a, b = map(read, folders)
    assert (a["world_size"], b["world_size"]) == (1, 2)
    for kind in KINDS:
        for name in CASES:
            close(a[f"{kind}/{name}"], b[f"{kind}/{name}"])


def test_checkpoints_go_on_exactly_and_with_and_without_deepspeed(folders: tuple[Path, Path]) -> None:
    a, b = map(read, folders)
    for kind in KINDS:
        assert b[f"{kind}/resumed"]["exactly"]
        close(a[f"{kind}/resumed"]["rest"], b[f"{kind}/from_one"])
        close(a[f"{kind}/restarted"], b[f"{kind}/restarted"])
        alone = new_run("nft", kind, None)
        load(alone, folders[1] / kind / "0000002")
        close(a[f"{kind}/resumed"]["rest"], curve(alone, 2))
        names = [{p.name for p in (path / kind).rglob("*.*")} for path in folders]
        assert names[0] == names[1]


def test_what_the_engine_cannot_do_is_said(folders: tuple[Path, Path]) -> None:
    critic, double, broken = read(folders[1])["said"]
    assert critic.startswith("DeepSpeed steps one network, and this method trains value beside it")
    assert double.startswith("DeepSpeed steps a float32 copy of the weights")
    assert broken.startswith("the gradient is not finite at iteration 1")
