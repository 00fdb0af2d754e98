"""Published models by the folder or the name they are loaded from; what goes wrong there is one sentence.

Weights come as a folder of transformers, or as one file: safetensors, or a checkpoint of torch, of which only tensors
are read (``weights_only``), so that a file can run no code.
"""

import importlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from girsanov.errors import GirsanovError


def transformers() -> Any:
    """The package. Raises GirsanovError where it is missing."""
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise GirsanovError("this reward needs the package transformers: pip install 'girsanov[rewards]'") from None


def pretrained(kind: str, name: str, **options: Any) -> Any:
    """``transformers.kind.from_pretrained(name)``, from a folder or from the hub; networks frozen, for evaluation.

    Raises GirsanovError if the package is missing or nothing of that kind is there.
    """
    package = transformers()
    logger = package.utils.logging
    level = logger.get_verbosity()
    logger.set_verbosity_error()
    logger.disable_progress_bar()
    try:
        found = getattr(package, kind).from_pretrained(str(Path(name).expanduser()), **options)
    except ImportError as error:
        raise GirsanovError(f"{name} needs a package that is not installed: {told(error)}") from error
    except (OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise GirsanovError(
            f"{name} cannot be loaded as a {kind} ({told(error)}): give the folder of one, or OWNER/NAME on the hub"
        ) from error
    finally:
        logger.set_verbosity(level)
        logger.enable_progress_bar()
    return frozen(found) if isinstance(found, nn.Module) else found


def settings_of(name: str) -> dict[str, Any]:
    """The settings of the image processor of a folder or of a name on the hub. Raises GirsanovError if it has none."""
    reader = importlib.import_module("transformers.image_processing_utils").BaseImageProcessor
    try:
        return dict(reader.get_image_processor_dict(str(Path(name).expanduser()))[0])
    except (OSError, ValueError) as error:
        raise GirsanovError(
            f"{name} does not say how it wants its images ({told(error)}): it needs a preprocessor_config.json"
        ) from error


def frozen(module: nn.Module) -> nn.Module:
    """The module without dropout and without gradients of its weights."""
    return module.eval().requires_grad_(False)


def told(error: BaseException) -> str:
    """The first line of what an error says, without its full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__


def weights_file(place: str) -> Path:
    """A file, or ``OWNER/NAME/FILE`` on the hub (from its cache where it is there).

    Raises GirsanovError where there is none.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return path
    owner, _, rest = place.partition("/")
    repository, _, file = rest.partition("/")
    if path.is_absolute() or not (owner and repository and file):
        raise GirsanovError(f"there is no file {place}: give the weights as a file, or as OWNER/NAME/FILE on the hub")
    transformers()
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(f"{owner}/{repository}", file))
    except (OSError, ValueError) as error:
        raise GirsanovError(
            f"there is no file {place}, and the hub does not give it ({told(error)}): download it, and give its path"
        ) from error


def read_tensors(place: str) -> dict[str, Tensor]:
    """The tensors of a file of weights; those under ``state_dict`` where it has that key.

    Raises GirsanovError if the file is missing, damaged, or holds anything but tensors.
    """
    path = weights_file(place)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        held = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise GirsanovError(
            f"{place} cannot be read as weights, and files that could run code are never opened: download it again, or "
            "convert it with safetensors.torch.save_file"
        ) from error
    held = held.get("state_dict", held) if isinstance(held, Mapping) else held
    if not isinstance(held, Mapping) or not held or not all(isinstance(v, Tensor) for v in held.values()):
        raise GirsanovError(f"{place} holds no dictionary of tensors: give a file of a model's weights")
    return {str(k).removeprefix("module."): v for k, v in held.items()}


def fill(module: nn.Module, tensors: Mapping[str, Tensor], place: str) -> nn.Module:
    """The module with these weights, frozen. Raises GirsanovError with the first name or shape that does not fit."""
    module.load_state_dict(fitting(module, tensors, place))
    return frozen(module)


def fitting(module: nn.Module, tensors: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """The tensors, if they are the module's. Raises GirsanovError with the first name or shape that does not fit."""
    own = module.state_dict()
    lacking = sorted(set(own) - set(tensors))
    wrong = [f"{k} {list(v.shape)}" for k, v in tensors.items() if k not in own or own[k].shape != v.shape]
    if lacking or wrong:
        what = f"lacks {lacking[0]}" if lacking else f"has {wrong[0]}, which does not fit"
        raise GirsanovError(f"{place} {what}: these weights belong to another model")
    return dict(tensors)
