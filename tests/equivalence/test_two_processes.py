"""One process and two (gloo, one machine) give the same curve and the same mean gradient, to 1e-6 relative."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.equivalence.two_processes import METHODS_HERE, main

ROOT = Path(__file__).resolve().parents[2]
NOT_MEANS = {"ratio_min", "ratio_max", "first/ratio_min", "first/ratio_max", "reward_std", "old_gap"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What one and two processes wrote."""
    results = {}
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    main(one, None)
    results[1] = json.loads((one / "found.json").read_text())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    script = [sys.executable, "-m", "tests.equivalence.two_processes", str(two)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, *script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    results[2] = json.loads((two / "found.json").read_text())
    return results


def test_the_world_sizes_are_what_they_should_be(found: dict[int, Any]) -> None:
    assert (found[1]["world_size"], found[2]["world_size"]) == (1, 2)


@pytest.mark.parametrize("name", METHODS_HERE)
def test_the_curves_agree(found: dict[int, Any], name: str) -> None:
    one, two = found[1][name]["curve"], found[2][name]["curve"]
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - NOT_MEANS:
            assert b[key] == pytest.approx(a[key], rel=1e-6, abs=1e-12), key


@pytest.mark.parametrize("name", METHODS_HERE)
def test_the_mean_gradients_agree(found: dict[int, Any], name: str) -> None:
    for a, b in zip(found[1][name]["gradients"], found[2][name]["gradients"], strict=True):
        size = max(abs(x) for x in a)
        assert size > 0
        assert max(abs(x - y) for x, y in zip(a, b, strict=True)) <= 1e-6 * size


def test_all_processes_try_again_with_less_when_one_runs_out_of_memory(found: dict[int, Any]) -> None:
    """Process 1 of two does; process 0 tells what it goes on with (of 4 samples each). Curves and gradients: above."""
    assert [found[n]["crowded-clipped-pg"]["sizes"] for n in (1, 2)] == [[None, None], [2, 2]]
    assert [found[n]["crowded-ctrl"]["sizes"] for n in (1, 2)] == [[None, None], [2, None]]


def test_evaluations_are_shared_out_and_give_the_same_samples(found: dict[int, Any]) -> None:
    """Eight samples in lots of three: two lots for process 0, one for process 1, which makes it twice so that both run
    the network equally often. Each sample is scored once."""
    one, two = (found[n]["evaluated"] for n in (1, 2))
    assert two["samples"] == one["samples"]
    assert two["numbers"] == pytest.approx(one["numbers"], rel=1e-6, abs=1e-12)
    assert one["numbers"]["kl"] > 0 and one["numbers"]["plane/judge_se"] > 0
    [[passes, ids]], [(first, some), (second, others)] = one["work"], two["work"]
    assert first == second == passes * 2 // 3
    assert ids == list(range(8)) and (some, others) == ([0, 1, 2, 6, 7], [3, 4, 5])


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_resumed_run_is_the_same_on_every_number_of_processes(found: dict[int, Any], world_size: int) -> None:
    assert found[world_size]["resumed"] == {"same_random": True, "same_curve": True}


def test_processes_that_see_different_checkpoints_say_so(found: dict[int, Any]) -> None:
    """On disks of their own one would go on and the others begin anew."""
    assert found[1]["refused"] == ""
    assert "(none and number 2): put the run's folder on a disk that all machines share" in found[2]["refused"]
