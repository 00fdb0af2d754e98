"""Adapters of tiny pipelines: two processes that split the frozen network (FSDP2, gloo) against one process.

Networks are in float32, as a user runs them. Gradients are held to 1e-4 of their largest number (seen: 8e-6 at most,
rounding; a sample that is lost or counted twice changes them by a tenth), curves likewise.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.end_to_end.test_pipelines import opened
from tests.equivalence.split_pipelines import CASES, main
from tests.equivalence.test_sharded import NOT_MEANS

pytest.importorskip("peft")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def folders(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What one and two processes wrote."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    main(one, root, None)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    script = [sys.executable, "-m", "tests.equivalence.split_pipelines", str(two), str(root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, *script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return [one, two]


@pytest.fixture(scope="module")
def found(folders: list[Path]) -> list[dict[str, Any]]:
    return [json.loads((path / "found.json").read_text()) for path in folders]


@pytest.mark.parametrize("case", [*CASES, *(f"{case}/recomputed" for case in CASES)])
def test_curves_and_mean_gradients_agree(found: list[dict[str, Any]], case: str) -> None:
    """With stored and with recomputed blocks; a process holds about half of the network."""
    one, two = (f[case] for f in found)
    assert one["held"] == 1.0 and two["held"] < 0.6
    for x, y in zip(one["curve"], two["curve"], strict=True):
        assert x.keys() == y.keys()
        for key in x.keys() - NOT_MEANS:
            assert y[key] == pytest.approx(x[key], rel=1e-4, abs=1e-6), key
    for a, b in zip(one["gradients"], two["gradients"], strict=True):
        size = max(map(abs, a))
        assert size > 0 and max(abs(x - y) for x, y in zip(a, b, strict=True)) <= 1e-4 * size


@pytest.mark.parametrize("case", CASES)
def test_recomputed_blocks_have_the_same_gradient(found: list[dict[str, Any]], case: str) -> None:
    """On two processes a block is gathered once more for it."""
    two = found[1]
    for a, b in zip(two[case]["gradients"], two[f"{case}/recomputed"]["gradients"], strict=True):
        assert max(abs(x - y) for x, y in zip(a, b, strict=True)) <= 1e-6 * max(map(abs, a))


@pytest.mark.parametrize("case", [c for c in CASES if not c.startswith("sit")])
def test_plain_diffusers_loads_the_adapters_of_a_split_network(folders: list[Path], root: Path, case: str) -> None:
    """The same numbers as those of one process, to what AdamW makes of rounding in two steps of 1e-5."""
    loaded = []
    for path in folders:
        adapter = opened(case.split("/")[0], root)
        adapter.pipe.load_lora_weights(str(path / case))
        loaded.append({n: p.detach() for n, p in adapter.network.named_parameters() if "lora_" in n})
    assert loaded[0].keys() == loaded[1].keys() and len(loaded[0]) > 0
    for name, p in loaded[0].items():
        torch.testing.assert_close(loaded[1][name], p, rtol=0, atol=4e-5)
