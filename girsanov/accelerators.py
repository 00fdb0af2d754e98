"""How several processes of one launch find each other, and how a network is placed on them.

``torchrun`` and ``accelerate launch`` start the processes; Accelerate's object connects them. How the network is spread
is a setting of the run, ``shard``, so that the run folder tells it; ``launchers.py`` has what a launcher may ask for.
"""

import os
from datetime import timedelta
from typing import Any

import torch
from tqdm import tqdm

from girsanov.errors import GirsanovError
from girsanov.launchers import check, on, zero_settings
from girsanov.recipes.base import Recipe, RunConfig

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others, who may score, write or load; one that dies ends the launch at once."""


def splittable(recipe: Recipe) -> None:
    """Raises GirsanovError for a recipe whose network is not split over processes."""
    if not recipe.splits:
        raise GirsanovError(
            f"the networks of the recipe {recipe.name} are a few numbers, and there is nothing to split over "
            "processes: leave shard=true out, every process then holds all of them"
        )


def accelerator_of(recipe: Recipe, config: RunConfig, device: torch.device) -> Any:
    """Accelerate's object where it is needed: several processes, a scaled loss, or DeepSpeed.

    Raises GirsanovError for a recipe whose network cannot be split, and for what a launcher asks for in vain.
    """
    if config.shard:
        splittable(recipe)
    check(os.environ, config)
    first = os.environ.get("RANK", "0") == "0"
    if on(os.environ, "ACCELERATE_USE_DEEPSPEED"):
        return deepspeed(config, device, first)
    if on(os.environ, "ACCELERATE_USE_FSDP") and first:
        tqdm.write("accelerate launch --use_fsdp: shard=true, the network is split by FSDP2")
    os.environ.pop("ACCELERATE_USE_FSDP", None)  # Accelerate's own plugin stays away
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and config.precision != "fp16":
        return None
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    precision = "fp16" if config.precision == "fp16" else "no"
    waits = [InitProcessGroupKwargs(timeout=PATIENCE)]
    return Accelerator(mixed_precision=precision, cpu=device.type == "cpu", kwargs_handlers=waits)


def deepspeed(config: RunConfig, device: torch.device, tell: bool) -> Any:
    """Accelerate's object with DeepSpeed's engine. Raises GirsanovError where it is missing or runs elsewhere."""
    settings = zero_settings(os.environ, config)
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from accelerate import Accelerator
    from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs, is_deepspeed_available

    if not is_deepspeed_available():
        raise GirsanovError("--use_deepspeed needs the package deepspeed: pip install 'girsanov[deepspeed]'")
    gloo = [InitProcessGroupKwargs(backend="gloo" if device.type == "cpu" else "nccl", timeout=PATIENCE)]
    accelerator = Accelerator(
        mixed_precision="no", deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=settings), kwargs_handlers=gloo
    )
    if accelerator.device.type != device.type:
        raise GirsanovError(
            f"DeepSpeed runs on {accelerator.device.type} here, not on {device.type}: leave --device out, or launch "
            "without --use_deepspeed"
        )
    if tell:
        stage = settings["zero_optimization"]["stage"]
        split = "averages of AdamW are" if stage == 1 else "gradients and averages of AdamW are"
        tqdm.write(f"accelerate launch --use_deepspeed: {split} split over processes by ZeRO-{stage}")
    return accelerator
