"""Checkpoints: everything that moves in a run, written so that a kill at any moment loses none that was finished.

A checkpoint is a folder ``checkpoints/0000120``:

=====================  ==========================================================================
current.safetensors    trainable weights of the policy; ``ema``, ``old``, ...: its moving copies
module-NAME.safetens.  weights of the method's further networks
state.pt               optimisers, schedulers, method state, random states of all processes
checkpoint.json        schema version, iteration, size and SHA-256 of the files above; written last
=====================  ==========================================================================

It is written into a temporary folder beside it, synced, and renamed. Nothing in it is pickled code: safetensors and
``torch.load(weights_only=True)``.

What processes hold parts of (``sharding.py``) is gathered on process 0: the files are the same however a run is spread,
and a run goes on from them on any number of processes, split or not.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from girsanov.disk import full_disk, sync
from girsanov.distributed import like_split, whole
from girsanov.errors import GirsanovError
from girsanov.random_states import random_state, set_random_state
from girsanov.train import Run

SCHEMA = 1
FORMAT = "girsanov-checkpoint"
DRAFT = ".draft-"


# ---- writing


def save(run: Run, folder: Path) -> Path | None:
    """Writes the run's state as ``folder/ITERATION``; only process 0 writes, all must call.

    Raises GirsanovError on a full disk; checkpoints written before are untouched.
    """
    ranks = gather({"state": run.state, "random": random_state()}, run)
    first = run.reduce.rank == 0
    weights = {name: run.policy.state(name, keep=first) for name in ("current", *run.policy.copies)}
    optimizers = {name: gathered(o.state_dict(), first) for name, o in run.optimizers.items()}
    if not first:
        return None
    target = folder / f"{run.done:07d}"
    draft = folder / f"{DRAFT}{target.name}"
    with full_disk(f"the checkpoint of iteration {run.done}"):
        try:
            remove_drafts(folder)
            draft.mkdir(parents=True)
            write(run, draft, weights, optimizers, ranks)
            if target.exists():
                os.rename(target, folder / f"{DRAFT}old-{target.name}")
            os.rename(draft, target)
            sync(folder)
        finally:
            remove_drafts(folder)
    return target


def write(
    run: Run, folder: Path, weights: Mapping[str, dict[str, Tensor]], optimizers: dict[str, Any], ranks: list[Any]
) -> None:
    """The files of a checkpoint, synced, the manifest last."""
    for name, tensors in weights.items():
        save_file(own(tensors), folder / f"{name}.safetensors")
    for name, module in run.method.modules().items():
        save_file(own(module.state_dict()), folder / f"module-{name}.safetensors")
    scaler = None if run.accelerator is None else run.accelerator.scaler
    state = {
        "optimizers": optimizers,
        "schedulers": {name: s.state_dict() for name, s in run.schedulers.items()},
        "scaler": None if scaler is None else scaler.state_dict(),
        "callbacks": run.callback_state,
        "ranks": ranks,
    }
    with (folder / "state.pt").open("wb") as file:
        torch.save(state, file)
    files = sorted(folder.iterdir())
    for path in files:
        sync(path)
    manifest = {
        "format": FORMAT,
        "schema": SCHEMA,
        "iteration": run.done,
        "world_size": run.reduce.world_size,
        "files": {p.name: {"bytes": p.stat().st_size, "sha256": digest(p)} for p in files},
    }
    path = folder / "checkpoint.json"
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    sync(path)
    sync(folder)


def own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous host tensors that share no memory, as safetensors asks for."""
    return {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_drafts(folder: Path) -> None:
    """Removes what an interrupted write left."""
    if folder.is_dir():
        for path in folder.glob(f"{DRAFT}*"):
            shutil.rmtree(path, ignore_errors=True)


def gathered(value: Any, keep: bool) -> Any:
    """An optimiser's state with split tensors made whole on the host; of no use unless ``keep``, but all must call."""
    if isinstance(value, Mapping):
        return {k: gathered(v, keep) for k, v in value.items()}
    return whole(value, keep) if isinstance(value, Tensor) else value


def parted(saved: dict[str, Any], optimizer: Any) -> dict[str, Any]:
    """``gathered`` undone: averages of a split parameter are split like it. How the step is made is the run's own."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def part_of(x: Any, p: Tensor) -> Any:
        return like_split(x.to(p.device), p) if isinstance(x, Tensor) and x.shape == p.shape and x.ndim else x

    state = {i: {k: part_of(v, parameters[i]) for k, v in kept.items()} for i, kept in saved["state"].items()}
    groups = [
        {**group, "fused": own["fused"]} if "fused" in group and "fused" in own else group
        for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=False)
    ]
    return {**saved, "state": state, "param_groups": groups}


def gather(value: Any, run: Run) -> list[Any]:
    """The value of every process, in rank order."""
    if run.reduce.world_size == 1:
        return [value]
    values: list[Any] = [None] * run.reduce.world_size
    torch.distributed.all_gather_object(values, value)
    return values


# ---- reading


def load(run: Run, path: Path) -> None:
    """Puts a run back to where it was when the checkpoint was written.

    Raises GirsanovError if the checkpoint is damaged, foreign, or belongs to another network or method.
    """
    put(run, path, verify(path))


def put(run: Run, path: Path, manifest: Mapping[str, Any]) -> None:
    """``load`` of a checkpoint that is known to be whole: gigabytes are hashed once."""
    state = read_state(path, run.policy.device)
    put_weights(run, path)
    for name, saved in state["optimizers"].items():
        optimizer = part(run.optimizers, name, path)
        optimizer.load_state_dict(parted(saved, optimizer))
    for name, saved in state["schedulers"].items():
        part(run.schedulers, name, path).load_state_dict(saved)
    if run.accelerator is not None and run.accelerator.scaler is not None and state["scaler"] is not None:
        run.accelerator.scaler.load_state_dict(state["scaler"])
    mine = of_rank(state["ranks"], run, path)
    run.state = mine["state"]
    run.callback_state = state["callbacks"]
    run.done = manifest["iteration"]
    if len(state["ranks"]) == run.reduce.world_size:  # the run's own noise is keyed: on another number it goes on alike
        set_random_state(mine["random"])


def of_rank(ranks: list[Any], run: Run, path: Path) -> dict[str, Any]:
    """What this process goes on with.

    On another number of processes only a method's state that all of them held alike has a meaning. Raises
    GirsanovError where they held different ones.
    """
    if len(ranks) == run.reduce.world_size:
        found: dict[str, Any] = ranks[run.reduce.rank]
        return found
    first = ranks[0]
    for other in ranks[1:]:
        for name in sorted(first["state"] | other["state"]):
            if not same(first["state"].get(name), other["state"].get(name)):
                raise GirsanovError(
                    f"{path} was written by {len(ranks)} processes that each hold their own {name!r} of the method: go "
                    f"on with {len(ranks)} processes, not {run.reduce.world_size}"
                )
    return first


def same(a: Any, b: Any) -> bool:
    """Whether two saved values are equal, tensors element by element (NaN equals NaN)."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def load_weights(run: Run, path: Path) -> None:
    """The weights alone: policy, moving copies and further networks; enough to sample."""
    verify(path)
    put_weights(run, path)


def put_weights(run: Run, path: Path) -> None:
    """``load_weights`` of a checkpoint that is known to be whole."""
    device = str(run.policy.device)
    for file in sorted(path.glob("*.safetensors")):
        weights = load_file(file, device)
        if file.stem.startswith("module-"):
            modules = run.method.modules()
            part(modules, file.stem.removeprefix("module-"), path).load_state_dict(weights)
        else:
            run.policy.load(file.stem, weights)


def part(parts: Mapping[str, Any], name: str, path: Path) -> Any:
    """The part that a saved state belongs to."""
    if name not in parts:
        raise GirsanovError(f"{path} is of another method: it has a {name!r} that this run lacks; give its own config")
    return parts[name]


def read_state(path: Path, device: torch.device) -> dict[str, Any]:
    """``state.pt`` of a whole checkpoint."""
    try:
        return torch.load(path / "state.pt", map_location=device, weights_only=True)
    except Exception as error:
        raise damaged(path, "state.pt cannot be read") from error


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are all whole. Raises GirsanovError otherwise."""
    manifest_path = path / "checkpoint.json"
    if not manifest_path.is_file():
        raise damaged(path, "it has no checkpoint.json")
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        foreign = manifest["format"] != FORMAT
    except (ValueError, KeyError, TypeError):
        raise damaged(path, "its checkpoint.json cannot be read") from None
    if foreign:
        raise damaged(path, "it was written by another program")
    if manifest["schema"] > SCHEMA:
        raise GirsanovError(
            f"{path} was written by a newer girsanov (schema {manifest['schema']}): upgrade the package"
        )
    for name, facts in manifest["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != facts["bytes"] or digest(file) != facts["sha256"]:
            raise damaged(path, f"{name} is not as it was written")
    return manifest


def damaged(path: Path, why: str) -> GirsanovError:
    """The sentence about a checkpoint that cannot be used."""
    return GirsanovError(f"{path} is no whole checkpoint, {why}: delete it and go on from an earlier one")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, whole or not."""
    return sorted(p for p in folder.glob("[0-9]*") if p.is_dir()) if folder.is_dir() else []
