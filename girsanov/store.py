"""Pretrained models on disk: a folder of two files, and a cache of them.

===================  ==================================================================================================
model.safetensors    the network's weights
model.json           format, schema version, network, process, prediction, SHA-256 of the weights, notes; read first
===================  ==================================================================================================

A folder is written beside its place and renamed into it, so that a kill never leaves a half. Nothing is
unpickled and no code is named in the files: a network and a process are names of this package's dicts with their
settings.
"""

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

import girsanov
from girsanov.config.parts import construct, describe
from girsanov.disk import full_disk, sync
from girsanov.errors import GirsanovError
from girsanov.models import Model, identity
from girsanov.nets import NETS, NetConfig, Preconditioned
from girsanov.predictions import Prediction
from girsanov.processes import PROCESSES, Process

FORMAT, SCHEMA = "girsanov-model", 1
WEIGHTS, SETTINGS = "model.safetensors", "model.json"


def save_pretrained(model: Model, folder: str | Path, notes: Mapping[str, Any] | None = None) -> Path:
    """Writes a model of this package's networks (with or without preconditioning) to a folder, all at once.

    Args:
        model: without decoder and time map, which are code and belong to whoever builds the model.
        folder: is replaced if it holds a saved model; refused if it holds anything else.
        notes: anything JSON can hold, kept as it is.

    Raises:
        GirsanovError: a network that cannot be rebuilt from settings, a folder in use, a full disk.
    """
    settings = {"format": FORMAT, "schema": SCHEMA, "girsanov": girsanov.__version__, **_settings(model)}
    return write_folder(folder, settings | {"notes": dict(notes or {})}, _module(model).state_dict())


def write_folder(
    folder: str | Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], marker: str = SETTINGS
) -> Path:
    """Writes settings (with the SHA-256 of the weights) and tensors to a folder, all at once.

    Raises GirsanovError if the folder holds anything but what was written there before, or the disk is full.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / marker).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise GirsanovError(f"{folder} holds something else than a saved model: name a new folder")
    weights = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    written = {**settings, "sha256": hashlib.sha256(weights).hexdigest()}
    with full_disk(f"the model in {folder}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            (draft / WEIGHTS).write_bytes(weights)
            (draft / marker).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
            for path in (draft / WEIGHTS, draft / marker, draft):
                sync(path)
            _replace(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def _replace(draft: Path, folder: Path) -> None:
    draft.chmod(0o755)
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        os.replace(folder, old)
        os.replace(draft, folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(draft, folder)
    sync(folder.parent)


def _module(model: Model) -> torch.nn.Module:
    if not isinstance(model.net, torch.nn.Module):
        raise GirsanovError("only models with a torch.nn.Module can be saved: save the policy's view by its run folder")
    return model.net


def _settings(model: Model) -> dict[str, Any]:
    net = _module(model)
    wrapped = isinstance(net, Preconditioned)
    config = getattr(net.net if isinstance(net, Preconditioned) else net, "config", None)
    if not isinstance(config, NetConfig) or type(config) not in NETS.values():
        raise GirsanovError(
            f"a saved model holds one of the networks {', '.join(NETS)}, not a {type(net).__name__}: save its weights "
            "with safetensors and build it in your own code"
        )
    if model.decode is not identity or model.time is not identity:
        raise GirsanovError(
            "a decoder or a time map is code and cannot be saved: save Model(...) without and add it back"
        )
    return {
        "net": describe(config),
        "process": describe(model.process),
        "prediction": model.prediction,
        "data_std": net.data_std if wrapped else None,
    }


def load_pretrained(folder: str | Path, device: torch.device | str = "cpu") -> Model:
    """The model that ``save_pretrained`` wrote, its parameters trainable.

    Raises GirsanovError in one sentence if there is none, it is damaged, or it is of another kind or a newer version.
    """
    settings = read_settings(folder)
    with damaged(folder):
        model = _build(settings)
        _module(model).load_state_dict(read_tensors(folder, settings), strict=True, assign=True)  # keeps the dtype
    _module(model).to(device)
    return model


@contextmanager
def damaged(folder: str | Path) -> Iterator[None]:
    """Turns what a damaged folder raises into a sentence."""
    try:
        yield
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise GirsanovError(
            f"the model in {folder} is damaged ({what}): delete the folder and make it again"
        ) from error


def read_tensors(folder: str | Path, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights beside settings. Raises GirsanovError if they are not what was written."""
    weights = (Path(folder) / WEIGHTS).read_bytes()
    if hashlib.sha256(weights).hexdigest() != settings["sha256"]:
        raise GirsanovError(f"{WEIGHTS} is not what was written")
    return load(weights)


def read_settings(
    folder: str | Path, marker: str = SETTINGS, written_as: str = FORMAT, schema: int = SCHEMA
) -> dict[str, Any]:
    """The settings of a saved model. Raises GirsanovError if the folder holds none or a newer one."""
    path = Path(folder) / marker
    if not path.is_file():
        raise GirsanovError(f"there is no saved model in {folder}: it has no {marker}")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GirsanovError(
            f"the model in {folder} is damaged ({marker} cannot be read): delete the folder and make it again"
        ) from error
    if not isinstance(settings, dict) or settings.get("format") != written_as:
        raise GirsanovError(f"{folder} was not written by Girsanov: name a folder that save_pretrained wrote")
    if not isinstance(settings.get("schema"), int) or settings["schema"] > schema:
        raise GirsanovError(f"the model in {folder} was written by a newer Girsanov: update the package")
    return settings


def _build(settings: Mapping[str, Any]) -> Model:
    """The model of the settings with fresh weights; names outside the package's dicts are refused, never imported."""
    for part, known in (("net", NETS), ("process", PROCESSES)):
        if settings[part]["kind"] not in known:
            raise GirsanovError(f"unknown {part} {settings[part]['kind']!r}")
    if settings["prediction"] not in get_args(Prediction):
        raise GirsanovError(f"unknown prediction {settings['prediction']!r}")
    config: NetConfig = construct(NetConfig, settings["net"])
    process: Process = construct(Process, settings["process"])
    net = config.build()
    if settings["data_std"] is not None:
        net = Preconditioned(net, process, settings["prediction"], float(settings["data_std"]))
    return Model(net, process, settings["prediction"], config.shape)


# ---- cache


def cache_folder() -> Path:
    """Where pretrained models are kept: the environment's GIRSANOV_CACHE, or ``~/.cache/girsanov``."""
    return Path(os.environ.get("GIRSANOV_CACHE") or Path.home() / ".cache" / "girsanov").expanduser()


def fingerprint(x: Tensor) -> str:
    """SHA-256 of a tensor's numbers, shape and dtype."""
    x = x.detach().cpu().contiguous()
    head = f"{x.dtype} {list(x.shape)}".encode()
    return hashlib.sha256(head + x.view(torch.uint8).numpy().tobytes()).hexdigest()


def cached(name: str, key: Mapping[str, Any], make: Callable[[], Model], folder: Path | None = None) -> Model:
    """The cached model of this key, or a new one that is then cached.

    Args:
        name: first part of the folder's name.
        key: everything that the model depends on, as plain data or settings; the versions of Girsanov and torch are
            added.
        make: makes the model.
        folder: the cache, ``cache_folder()`` by default.

    A damaged entry is made anew, with a warning. Two processes that make the same model do not disturb each other.
    """
    full = {"key": describe(dict(key)), "girsanov": girsanov.__version__, "torch": torch.__version__}
    digest = hashlib.sha256(json.dumps(full, sort_keys=True).encode()).hexdigest()[:16]
    place = (folder or cache_folder()) / f"{name}-{digest}"
    if place.exists():
        try:
            return load_pretrained(place)
        except GirsanovError as error:
            warnings.warn(f"{error} (it is being made again now)", stacklevel=2)
            shutil.rmtree(place, ignore_errors=True)
    model = make()
    try:
        save_pretrained(model, place, notes=full)
    except (OSError, GirsanovError) as error:
        warnings.warn(f"the model was not cached, the next run makes it again: {error}", stacklevel=2)
    return model
