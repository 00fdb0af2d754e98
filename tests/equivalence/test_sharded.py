"""A network split over two processes (FSDP2, gloo) gives what one process gives: to 1e-6, in float64 to 1e-12."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from girsanov.accelerators import accelerator_of
from girsanov.checkpoint import load
from girsanov.errors import GirsanovError
from girsanov.recipes import RECIPES, get_recipe
from girsanov.sharding import Sharding
from tests.equivalence.sharded import ALL, CPU, FEW, KINDS, METHODS_HERE, curve, main, model_of, new_run

ROOT = Path(__file__).resolve().parents[2]
NOT_MEANS = {"ratio_min", "ratio_max", "first/ratio_min", "first/ratio_max", "reward_std", "old_gap"}


def both(one: Path, two: Path, which: str) -> dict[int, Any]:
    """What one and two processes wrote."""
    main(one, None, ALL if which == "all" else FEW)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    script = [sys.executable, "-m", "tests.equivalence.sharded", str(two), str(one), which]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, *script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return {n: json.loads((path / "found.json").read_text()) for n, path in ((1, one), (2, two))}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return {n: tmp_path_factory.mktemp(name) for n, name in ((1, "one"), (2, "two"))}


@pytest.fixture(scope="module")
def found(folders: dict[int, Path]) -> dict[int, Any]:
    return both(folders[1], folders[2], "few")


def close(a: list[dict[str, float]], b: list[dict[str, float]]) -> None:
    """Two curves agree, but for what is no mean over samples."""
    assert len(a) == len(b) == 2
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in x.keys() - NOT_MEANS:
            assert y[key] == pytest.approx(x[key], rel=1e-6, abs=1e-12), key


def agree(one: dict[str, Any], two: dict[str, Any], idle: int = 0) -> None:
    """Curves, and the mean gradient of every update; of the first ``idle`` ones it is zero."""
    close(one["curve"], two["curve"])
    for i, (a, b) in enumerate(zip(one["gradients"], two["gradients"], strict=True)):
        size = max(map(abs, a))
        assert (size > 0) is (i >= idle)
        assert max(abs(x - y) for x, y in zip(a, b, strict=True)) <= 1e-6 * size


def idle_of(case: str) -> int:
    """Iterations (of one update) in which only the value of a method learns."""
    return int(METHODS_HERE.get(case.split("/")[1], {}).get("pretrain", 0))


@pytest.mark.parametrize("case", FEW)
def test_curves_and_mean_gradients_agree(found: dict[int, Any], case: str) -> None:
    agree(found[1][case], found[2][case], idle_of(case))


@pytest.mark.slow
def test_every_family_agrees_with_adapters_and_with_all_weights(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    found = both(tmp_path / "one", tmp_path / "two", "all")
    for case in ALL:
        agree(found[1][case], found[2][case], idle_of(case))


@pytest.mark.parametrize("kind", KINDS)
def test_each_process_holds_a_part_and_every_view_is_the_same(found: dict[int, Any], kind: str) -> None:
    assert (found[1]["world_size"], found[2]["world_size"]) == (1, 2)
    assert found[1][f"{kind}/held"] == 1.0
    assert found[2][f"{kind}/held"] < 0.7  # adapters are whole on both
    for name, values in found[1][f"{kind}/views"].items():
        assert found[2][f"{kind}/views"][name] == pytest.approx(values, rel=1e-6, abs=1e-12), name


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_go_on_exactly_and_on_another_number_of_processes(
    found: dict[int, Any], folders: dict[int, Path], kind: str
) -> None:
    assert found[2][f"{kind}/resumed"]["exactly"]
    rest = found[1][f"{kind}/resumed"]["rest"]
    close(rest, found[2][f"{kind}/from_one"])
    alone = new_run("nft", kind, None)
    load(alone, folders[2] / kind / "0000002")
    close(rest, curve(alone, 2))
    assert {p.name for p in (folders[1] / kind).rglob("*.*")} == {p.name for p in (folders[2] / kind).rglob("*.*")}


@pytest.mark.parametrize("kind", KINDS)
def test_processes_measure_a_language_model_together(found: dict[int, Any], kind: str) -> None:
    """Seven completions in four lots on two processes: the same completions and numbers, and as many passes on each
    where the network is split; where it is not, two processes need about half as many passes each as one."""
    one = found[1][f"{kind}/split/measured"]
    assert len(set(map(tuple, one["texts"]))) > 2 and one["numbers"]["kl"] != 0
    for place in ("split", "whole"):
        two = found[2][f"{kind}/{place}/measured"]
        assert two["texts"] == one["texts"]
        assert two["numbers"] == pytest.approx(one["numbers"], rel=1e-6, abs=1e-12)
    calls = found[2][f"{kind}/split/measured"]["calls"]
    assert len(calls) == 2 and calls[0] == calls[1] > 0
    whole = found[2][f"{kind}/whole/measured"]["calls"]
    assert 0 < max(whole) < 0.7 * one["calls"][0]


def test_state_that_each_process_holds_for_itself_is_refused_elsewhere(
    found: dict[int, Any], folders: dict[int, Path]
) -> None:
    path = folders[2] / "mine" / "0000000"
    with pytest.raises(GirsanovError) as error:
        load(new_run("nft", "full", None), path)
    assert str(error.value) == (
        f"{path} was written by 2 processes that each hold their own 'mine' of the method: go on with 2 "
        "processes, not 1"
    )


def test_a_network_is_split_over_processes_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GirsanovError, match="start them with torchrun or accelerate launch"):
        Sharding(model_of("full").net, CPU)
    config = get_recipe("digits").config
    assert config(shard=True).split(model_of("full").net, CPU) is None  # one process holds everything
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(GirsanovError, match="take precision=bf16 instead of fp16"):
        config(shard=True, precision="fp16").split(model_of("full").net, CPU)
    with pytest.raises(GirsanovError, match="adamw8bit cannot be"):
        config(shard=True, train={"optimizer": "adamw8bit"}).split(model_of("full").net, CPU)


@pytest.mark.parametrize("name", ["lq", "pairs"])
def test_a_recipe_that_cannot_be_split_says_so(name: str) -> None:
    """Those of control; all others can."""
    assert {n for n in RECIPES if not get_recipe(n).splits} == {"lq", "pairs"}
    recipe = get_recipe(name)
    with pytest.raises(GirsanovError, match=f"the recipe {name} are a few numbers, and there is nothing to split"):
        accelerator_of(recipe, recipe.config(shard=True), CPU)
