"""From a folder or a name to an adapter: the family is picked by the class that ``model_index.json`` names."""

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from girsanov.adapters.base import Adapter, PipelineConfig
from girsanov.building import ran_out
from girsanov.errors import GirsanovError

FAMILIES: dict[str, str] = {
    "StableDiffusionPipeline": "girsanov.adapters.stable_diffusion:StableDiffusion",
    "StableDiffusionControlNetPipeline": "girsanov.adapters.controlnet:ControlledStableDiffusion",
    "StableDiffusion3Pipeline": "girsanov.adapters.sd3:StableDiffusion3",
    "Flux2KleinPipeline": "girsanov.adapters.flux2:Flux2Klein",
    "StableDiffusionXLPipeline": "girsanov.adapters.sdxl:StableDiffusionXL",
    "FluxPipeline": "girsanov.adapters.flux:Flux",
    "QwenImagePipeline": "girsanov.adapters.qwen_image:QwenImage",
    "SanaPipeline": "girsanov.adapters.sana:Sana",
    "DiTPipeline": "girsanov.adapters.dit:DiT",
    "WanPipeline": "girsanov.adapters.wan:Wan",
    "StableAudioPipeline": "girsanov.adapters.stable_audio:StableAudio",
}
"""Pipeline class -> adapter, as ``module:Class``, imported when a pipeline of it is loaded."""

REFUSED = {
    "StableDiffusionXLImg2ImgPipeline": "the refiner of SDXL, which only redraws what the base has drawn: tune the "
    "base model, stabilityai/stable-diffusion-xl-base-1.0"
}
"""Pipelines of known networks that are not tuned, and what to do instead."""

INDEX = "model_index.json"
CHECKED = ("StableDiffusionPipeline", "StableDiffusionControlNetPipeline")


def load_pipeline(
    name: str | Path,
    config: PipelineConfig | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    family: type[Adapter] | None = None,
) -> Adapter:
    """The adapter of a pipeline in a folder, or of a name on the Hugging Face hub.

    Args:
        name: what ``DiffusionPipeline.from_pretrained`` takes; or a published SiT checkpoint (``.pt``), with the folder
            of its autoencoder after a comma.
        config: size and the like.
        dtype: of the weights; steps are in float32 whatever it is.
        family: the adapter to use, your own for example; by default the one of the pipeline's class.

    Raises:
        GirsanovError: no diffusers, no pipeline at that place, an unknown family, a setting that the family lacks.
    """
    if str(name).partition(",")[0].endswith((".pt", ".pth")):
        from girsanov.adapters.sit import load_sit

        return load_sit(str(name), config, dtype=dtype)
    kind = pipeline_class(str(name))
    if family is None:
        family = family_of(kind, str(name))
    if kind not in family.pipelines:
        raise GirsanovError(f"{name} is a {kind}, and {family.__name__} reads {', '.join(family.pipelines)}")
    return family(open_pipeline(kind, str(name), dtype), config)


def family_of(kind: str, name: str) -> type[Adapter]:
    """The adapter of a pipeline class. Raises GirsanovError where there is none."""
    if kind in REFUSED:
        raise GirsanovError(f"{name} is a {kind}: {REFUSED[kind]}")
    if kind not in FAMILIES:
        raise GirsanovError(
            f"{name} is a {kind}, a family that is not known here: there are {', '.join(FAMILIES)}; one of your own is "
            "forty lines, see docs/models.md"
        )
    module, _, cls = FAMILIES[kind].partition(":")
    family: type[Adapter] = getattr(importlib.import_module(module), cls)
    return family


def diffusers() -> Any:
    """The package. Raises GirsanovError where it is missing or cannot be imported."""
    try:
        return importlib.import_module("diffusers")
    except ImportError:
        raise GirsanovError(
            "pretrained pipelines need the package diffusers: pip install 'girsanov[diffusers]'"
        ) from None


def pipeline_class(name: str) -> str:
    """The class of a pipeline, from its ``model_index.json``, on disk or on the hub."""
    path = Path(name).expanduser()
    if path.exists():
        if not (path / INDEX).is_file():
            raise GirsanovError(f"{name} is no pipeline, it has no {INDEX}: give the folder that holds one")
        file = path / INDEX
    else:
        file = from_hub(name)
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["_class_name"])
    except (ValueError, KeyError, TypeError):
        raise GirsanovError(f"{name} is no pipeline, its {INDEX} names no class: download it again") from None


def from_hub(name: str) -> Path:
    """``model_index.json`` of a repository on the hub, from its cache where it is there."""
    diffusers()
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.errors import RepositoryNotFoundError as NotFound

    try:
        return Path(hf_hub_download(name, INDEX))
    except GatedRepoError:
        raise GirsanovError(
            f"{name} asks for its terms to be accepted: do so on its page, then log in with `hf auth login`"
        ) from None
    except (NotFound, HFValidationError):
        raise GirsanovError(
            f"there is no folder {name}, and no pipeline of that name on the hub: give a folder, or OWNER/NAME (with "
            "`hf auth login` where it is private)"
        ) from None
    except (LocalEntryNotFoundError, OSError):
        raise GirsanovError(
            f"there is no folder {name}, and the hub cannot be reached to look for that name: give a folder, or "
            "download it where there is a network"
        ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notices and progress bars of loading; errors are shown."""
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    levels, bars = (ours.get_verbosity(), theirs.get_verbosity()), (ours, theirs)
    ours.set_verbosity_error()
    theirs.set_verbosity_error()
    for part in bars:
        part.disable_progress_bar()
    try:
        yield
    finally:
        ours.set_verbosity(levels[0])
        theirs.set_verbosity(levels[1])
        for part in bars:
            part.enable_progress_bar()


def open_pipeline(kind: str, name: str, dtype: torch.dtype) -> Any:
    """The pipeline with its weights in a dtype; the safety checker is left out."""
    package = diffusers()
    with quiet():
        known = hasattr(package, kind)
    if not known:
        raise GirsanovError(f"diffusers {package.__version__} has no {kind}: upgrade it")
    unchecked = {"safety_checker": None, "requires_safety_checker": False} if kind in CHECKED else {}
    try:
        with quiet():
            return getattr(package, kind).from_pretrained(name, dtype=dtype, **unchecked)
    except ImportError as error:
        raise GirsanovError(f"{name} needs a package that is not installed: {first_line(error)}") from error
    except (OSError, ValueError, RuntimeError) as error:
        if ran_out(error):
            raise
        raise GirsanovError(f"{name} cannot be loaded as a {kind} ({first_line(error)}): download it again") from error


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
