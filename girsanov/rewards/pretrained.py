"""Published models by the folder or the name they are loaded from; what goes wrong there is one sentence.

Weights come as a folder of transformers, or as one file: safetensors, or a checkpoint of torch, of which only tensors
are read (``weights_only``), so that a file can run no code.
"""

import importlib
import pickle
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from girsanov.building import ran_out
from girsanov.errors import GirsanovError

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
REMADE = (
    "position_ids",
    "num_batches_tracked",
    "inv_freq",
    "relative_position_index",
)  # tables and counts, not weights


def transformers() -> Any:
    """The package. Raises GirsanovError where it is missing."""
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise GirsanovError("this reward needs the package transformers: pip install 'girsanov[rewards]'") from None


def pretrained(kind: str, name: str, **options: Any) -> Any:
    """``transformers.kind.from_pretrained(name)``, from a folder or from the hub; networks frozen, for evaluation.

    Raises GirsanovError if the package is missing, nothing of that kind is there, or what is there belongs to another
    model: transformers itself makes up the weights that it does not find, and tokenizers too.
    """
    package, place = transformers(), str(Path(name).expanduser())
    wanted = getattr(package, kind)
    network = hasattr(wanted, "from_config") or issubclass(wanted, nn.Module)
    more = {"output_loading_info": True, "ignore_mismatched_sizes": True} if network else {}
    try:
        with quiet(package):
            same_kind(wanted, place, kind)
            found = wanted.from_pretrained(place, **options, **more)
    except GirsanovError:
        raise
    except ImportError as error:
        raise GirsanovError(f"{name} needs a package that is not installed: {told(error)}") from error
    except (OSError, ValueError, RuntimeError, TypeError, AttributeError, KeyError) as error:
        if ran_out(error):
            raise
        raise GirsanovError(
            f"{name} cannot be loaded as {a(kind)} ({told(error)}): give the folder of one, or OWNER/NAME on the hub"
        ) from error
    if network:
        model, facts = found
        check_filled(model, facts, place)
        return frozen(model)
    if hasattr(found, "get_vocab") and set(found.get_vocab()) <= set(found.all_special_tokens):
        raise GirsanovError(f"{name} holds no tokenizer: give the folder of {a(kind)}, or OWNER/NAME on the hub")
    return found


@contextmanager
def quiet(package: Any) -> Iterator[None]:
    """Without the notices of transformers, and without its progress bar."""
    logger = package.utils.logging
    level = logger.get_verbosity()
    logger.set_verbosity_error()
    logger.disable_progress_bar()
    try:
        yield
    finally:
        logger.set_verbosity(level)
        logger.enable_progress_bar()


def same_kind(wanted: Any, place: str, kind: str) -> None:
    """Raises GirsanovError if a folder or name says itself that it holds another kind of model or tokenizer."""
    if hasattr(wanted, "vocab_files_names"):
        settings = importlib.import_module("transformers.models.auto.tokenization_auto").get_tokenizer_config(place)
        held = str(settings.get("tokenizer_class") or kind).removesuffix("Fast")
        strange = held != kind.removesuffix("Fast")
    elif (known := getattr(wanted, "_model_mapping", None)) is not None:  # AutoModelFor...
        config = transformers().AutoConfig.from_pretrained(place)
        held, strange = config.model_type, type(config) not in known
    else:
        asked = getattr(getattr(wanted, "config_class", wanted), "model_type", None)
        held = str(transformers().PretrainedConfig.get_config_dict(place)[0].get("model_type", asked)) if asked else ""
        strange = bool(held) and held != asked
    if strange:
        what = "a tokenizer" if hasattr(wanted, "vocab_files_names") else "a model"
        raise GirsanovError(
            f"{place} holds {what} of the kind {held}, and {a(kind)} is needed: give the folder of one, or OWNER/NAME "
            "on the hub"
        )


def check_filled(model: nn.Module, facts: Mapping[str, Any], place: str) -> None:
    """Raises GirsanovError unless every weight of a model came from the folder or name, and fitted.

    Args:
        model: as loaded.
        facts: what transformers reports with ``output_loading_info``.
        place: the folder or name.
    """
    own = model.state_dict()
    misfit(
        model,
        [n for n in facts["missing_keys"] if n not in own or own[n].is_floating_point()],  # not tables made anew
        [n for n in facts["unexpected_keys"] if not n.endswith(REMADE)],
        [(n, list(held), list(wanted)) for n, held, wanted in facts["mismatched_keys"]],
        next((str(p) for n in FILES if (p := Path(place) / n).is_file()), place),
    )


def check_vocabulary(tokenizer: Any, known: int, place: str) -> None:
    """Raises GirsanovError if a tokenizer has more tokens than a model knows; ``place`` is where it was read."""
    if len(tokenizer) > known:
        raise GirsanovError(
            f"the tokenizer of {place} has {len(tokenizer)} tokens and the model knows {known}: they do not belong "
            "together"
        )


def misfit(
    model: nn.Module,
    lacking: Collection[str],
    strange: Collection[str],
    shaped: Collection[tuple[str, list[int], list[int]]],
    place: str,
) -> None:
    """Raises GirsanovError if weights do not fit a model; it names the first of them.

    Args:
        model: what they are for.
        lacking: weights of the model that are not there.
        strange: weights that the model has not.
        shaped: weights of another shape, with their own and the model's.
        place: where they were read.
    """
    kind = a(type(model).__name__)
    if lacking:
        what = f"lacks {min(lacking)}" + more_of(lacking, f"of the {len(model.state_dict())} weights of {kind}")
    elif shaped:
        name, held, wanted = min(shaped)
        what = f"has {name} of shape {held}, which is {wanted} in {kind}" + more_of(shaped, "like it")
    elif strange:
        what = f"has {min(strange)}, which {kind} has not" + more_of(strange, "like it")
    else:
        return
    raise GirsanovError(f"{place} {what}: these weights belong to another model")


def more_of(names: Collection[Any], what: str) -> str:
    """`` and n more ...``, where there is more than one."""
    return f" and {len(names) - 1} more {what}" if len(names) > 1 else ""


def a(noun: str) -> str:
    """The noun with its article."""
    return f"an {noun}" if noun[:1] in "AEIOU" else f"a {noun}"


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
    shapes = [(k, list(v.shape), list(own[k].shape)) for k, v in tensors.items() if k in own]
    wrong = [found for found in shapes if found[1] != found[2]]
    misfit(module, set(own) - set(tensors), set(tensors) - set(own), wrong, place)
    return dict(tensors)
