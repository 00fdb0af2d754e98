"""Checkpoints: whole or not there, exact, and refused with a sentence when they cannot be used."""

import errno
import json
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from girsanov import checkpoint
from girsanov.callbacks import Checkpoints
from girsanov.checkpoint import checkpoints, load, load_weights, save, verify
from girsanov.errors import GirsanovError
from girsanov.folder import RunFolder
from girsanov.grids import Grid
from girsanov.methods import METHODS
from girsanov.problems import LinearReward
from girsanov.random_states import random_state, set_random_state
from girsanov.resume import restore
from girsanov.train import Run, iterate, train
from tests.tiny import restless_run, tiny_run


def everything(run: Run) -> dict[str, Any]:
    """All that moves, for comparing."""
    critic = {name: m.state_dict() for name, m in run.method.modules().items()}
    weights = {name: run.policy.state(name) for name in ("current", *run.policy.copies)}
    optimizers = {name: o.state_dict() for name, o in run.optimizers.items()}
    schedulers = {name: s.state_dict() for name, s in run.schedulers.items()}
    return {"modules": critic, "weights": weights, "optimizers": optimizers, "rates": schedulers, "state": run.state}


def same(a: Any, b: Any) -> bool:
    """Equality to the bit, of nested records."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return callable(a) or a == b


def step(run: Run, n: int) -> list[dict[str, float]]:
    rows = []
    for _ in range(n):
        rows.append({k: v for k, v in iterate(run).items() if not k.startswith(("time/", "speed/"))})
        run.done += 1
    return rows


def test_a_loaded_run_goes_on_as_the_saved_one_would_have(tmp_path: Path) -> None:
    run = restless_run(iterations=8)
    torch.manual_seed(5)
    step(run, 3)
    path = save(run, tmp_path)
    rest = step(run, 4)
    other = restless_run(iterations=8)
    torch.manual_seed(77)
    load(other, path)
    assert other.done == 3
    assert step(other, 4) == rest
    assert same(everything(other), everything(run))


PROMPTED = [name for name, method in METHODS.items() if method.data == "prompts"]


@pytest.mark.parametrize("name", PROMPTED)
def test_every_method_goes_on_exactly(tmp_path: Path, name: str) -> None:
    """Its moving state included: two iterations, a checkpoint, and two more are four in a row."""

    def fresh() -> Run:
        method = METHODS[name](reward=LinearReward([1.0, 0.5]), grid=Grid.uniform(6))
        return tiny_run(method, iterations=4, lr=1e-2)

    run = fresh()
    step(run, 2)
    path = save(run, tmp_path)
    rest = step(run, 2)
    other = fresh()
    load(other, path)
    assert step(other, 2) == rest
    assert same(everything(other), everything(run))


def test_nothing_in_a_checkpoint_is_code(tmp_path: Path) -> None:
    run = restless_run()
    step(run, 2)
    path = save(run, tmp_path)
    names = {p.name for p in path.iterdir()}
    assert names == {
        "current.safetensors",
        "ema.safetensors",
        "old.safetensors",
        "module-critic.safetensors",
        "state.pt",
        "checkpoint.json",
    }
    torch.load(path / "state.pt", weights_only=True)


def test_global_random_states_come_back() -> None:
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    state = random_state()
    drawn = (torch.rand(3), np.random.rand(3), np.random.randn(), random.random())
    set_random_state(state)
    again = (torch.rand(3), np.random.rand(3), np.random.randn(), random.random())
    assert torch.equal(drawn[0], again[0]) and (drawn[1] == again[1]).all() and drawn[2:] == again[2:]


def damage_cut(path: Path) -> None:
    file = path / "state.pt"
    file.write_bytes(file.read_bytes()[:-10])


def damage_bit(path: Path) -> None:
    file = path / "current.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


def damage_missing(path: Path) -> None:
    (path / "current.safetensors").unlink()


def damage_manifest(path: Path) -> None:
    (path / "checkpoint.json").write_text('{"format": "gir')


def damage_no_manifest(path: Path) -> None:
    (path / "checkpoint.json").unlink()


def damage_foreign(path: Path) -> None:
    (path / "checkpoint.json").write_text('{"format": "other", "schema": 1}')


DAMAGES = {
    "cut": (damage_cut, "state.pt is not as it was written"),
    "bit": (damage_bit, "current.safetensors is not as it was written"),
    "missing": (damage_missing, "current.safetensors is not as it was written"),
    "half-manifest": (damage_manifest, "its checkpoint.json cannot be read"),
    "no-manifest": (damage_no_manifest, "it has no checkpoint.json"),
    "foreign": (damage_foreign, "it was written by another program"),
}


@pytest.mark.parametrize(("damage", "why"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_one_sentence_and_the_one_before_is_used(tmp_path: Path, damage: Any, why: str) -> None:
    run = restless_run()
    for _ in range(2):
        step(run, 1)
        path = save(run, tmp_path)
    damage(path)
    sentence = f"{path} is no whole checkpoint, {why}: delete it and go on from an earlier one"
    other, said = restless_run(), []
    with pytest.raises(GirsanovError) as error:
        load(other, path)
    assert str(error.value) == sentence
    assert restore(other, tmp_path, said.append) == tmp_path / "0000001"
    assert other.done == 1 and said == [f"skipped: {sentence}"]


def test_no_whole_checkpoint_restores_nothing(tmp_path: Path) -> None:
    run = restless_run()
    damage_cut(save(run, tmp_path))
    assert restore(run, tmp_path, lambda _: None) is None
    assert restore(run, tmp_path / "nowhere") is None


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = save(restless_run(), tmp_path)
    manifest = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps({**manifest, "schema": 99}))
    with pytest.raises(GirsanovError) as error:
        verify(path)
    assert str(error.value) == f"{path} was written by a newer girsanov (schema 99): upgrade the package"


def test_a_checkpoint_of_another_method_or_network_is_refused(tmp_path: Path) -> None:
    path = save(restless_run(), tmp_path)
    with pytest.raises(GirsanovError) as error:
        load(tiny_run(), path)
    assert str(error.value) == (
        f"{path} is of another method: it has a 'critic' that this run lacks; give its own config"
    )
    other = tiny_run()
    other.policy.weights.trained.popitem()
    with pytest.raises(GirsanovError, match="the saved weights belong to another network"):
        load(other, save(tiny_run(), tmp_path / "tiny"))


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("writer", ["torch.save", "girsanov.checkpoint.save_file", "girsanov.checkpoint.sync"])
def test_a_full_disk_is_one_sentence_and_leaves_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    run = restless_run()
    before = save(run, tmp_path)
    step(run, 1)
    monkeypatch.setattr(writer, full)
    with pytest.raises(GirsanovError) as error:
        save(run, tmp_path)
    assert str(error.value) == (
        "the disk is full: the checkpoint of iteration 1 was not written, what was saved before is intact; free some "
        "space and go on with --resume"
    )
    verify(before)
    assert list(tmp_path.iterdir()) == [before]


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.name != "posix" or not shutil.which("mount") or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("this machine does not let a test mount a small disk")
    try:
        run, saved = tiny_run(iterations=100), []
        with pytest.raises(GirsanovError, match=r"^the disk is full: the checkpoint of iteration \d+ was not written"):
            for _ in range(20):
                saved.append(save(run, disk))
                step(run, 1)
        assert saved and checkpoints(disk) == saved
        for path in saved:
            verify(path)
        with pytest.raises(GirsanovError, match="^the disk is full: the line of iteration 1 in metrics.jsonl was not"):
            for _ in range(100):
                RunFolder(disk).log(1, {"x": "y" * 4000})
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)

    class Judge:
        scores = (0.1, 0.9, 0.3, 0.2, 0.5, 0.4)

        def start(self, run: Run) -> None: ...

        def iteration(self, run: Run, metrics: dict[str, float]) -> None:
            metrics["eval/judge"] = self.scores[run.done - 1]

        def end(self, run: Run) -> None: ...

    run = tiny_run(iterations=6)
    train(run, [Judge(), Checkpoints(folder, every=1, keep=2, best="judge")])
    assert [int(p.name) for p in checkpoints(folder.checkpoints)] == [2, 5, 6]
    assert run.callback_state["best"] == {"iteration": 2, "score": 0.9}


def test_a_lower_score_may_be_the_better_one(tmp_path: Path) -> None:
    run = tiny_run()
    keeper = Checkpoints(RunFolder(tmp_path), every=100, best="judge", sign=-1)
    for i, score in enumerate((3.0, 1.0, 2.0), start=1):
        run.done = i
        keeper.iteration(run, {"eval/judge": score})
    assert run.callback_state["best"] == {"iteration": 2, "score": 1.0}


def test_leftovers_of_an_interrupted_write_are_ignored_and_removed(tmp_path: Path) -> None:
    run = tiny_run()
    draft = tmp_path / f"{checkpoint.DRAFT}0000000"
    draft.mkdir()
    (draft / "state.pt").write_text("half")
    assert checkpoints(tmp_path) == []
    path = save(run, tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_saving_an_iteration_again_replaces_it(tmp_path: Path) -> None:
    run = tiny_run()
    path = save(run, tmp_path)
    damage_cut(path)
    assert save(run, tmp_path) == path
    verify(path)


def test_a_run_that_breaks_off_within_an_iteration_is_not_saved(tmp_path: Path) -> None:
    class Breaks:
        def start(self, run: Run) -> None: ...

        def iteration(self, run: Run, metrics: dict[str, float]) -> None:
            if run.done == 3:
                raise RuntimeError("broken")

        def end(self, run: Run) -> None: ...

    run = tiny_run(iterations=5)
    with pytest.raises(RuntimeError, match="broken"):
        train(run, [Breaks(), Checkpoints(RunFolder(tmp_path), every=2)])
    assert run.failed
    assert [int(p.name) for p in checkpoints(tmp_path / "checkpoints")] == [0, 2]


def test_a_checkpoint_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large network that is gigabytes, read from disk each time."""
    run = tiny_run()
    iterate(run)
    run.done = 1
    path = save(run, tmp_path)
    assert path is not None
    hashed: list[str] = []
    digest = checkpoint.digest
    monkeypatch.setattr(checkpoint, "digest", lambda file: hashed.append(file.name) or digest(file))
    restore(tiny_run(), tmp_path)
    assert sorted(hashed) == ["current.safetensors", "ema.safetensors", "state.pt"]
    hashed.clear()
    load_weights(tiny_run(), path)
    assert sorted(hashed) == ["current.safetensors", "ema.safetensors", "state.pt"]
