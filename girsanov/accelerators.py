"""How several processes of one launch find each other, and how a network is placed on them.

``torchrun`` and ``accelerate launch`` start the processes; Accelerate's object connects them. How the network is spread
is a setting of the run, ``shard``, so that the run folder tells it: a launcher that would spread it in its own way
(FSDP or DeepSpeed plugins, whose engines wrap the one network they know) is refused.
"""

import os
from typing import Any

import torch

from girsanov.errors import GirsanovError
from girsanov.recipes.base import Recipe, RunConfig

PLUGINS = {
    "ACCELERATE_USE_FSDP": "--use_fsdp",
    "ACCELERATE_USE_DEEPSPEED": "--use_deepspeed",
    "ACCELERATE_USE_MEGATRON_LM": "--use_megatron_lm",
}
"""What ``accelerate launch`` sets in the environment, and the option that asks for it."""


def accelerator_of(recipe: Recipe, config: RunConfig, device: torch.device) -> Any:
    """Accelerate's object where it is needed: several processes, or a scaled loss.

    Raises GirsanovError for a recipe whose network cannot be split, and for a launcher that would split it in a way of
    its own.
    """
    if config.shard and not recipe.splits:
        raise GirsanovError(
            f"the recipe {recipe.name} cannot split its network over processes: leave shard=true out, every process "
            "then holds all of it"
        )
    for variable, option in PLUGINS.items():
        if os.environ.get(variable, "false").lower() in ("true", "1"):
            raise GirsanovError(
                f"accelerate launch {option} wraps a network that girsanov runs with many sets of weights: launch "
                "without it (accelerate launch --multi_gpu, or torchrun) and split the network with shard=true"
            )
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and config.precision != "fp16":
        return None
    from accelerate import Accelerator

    return Accelerator(mixed_precision="fp16" if config.precision == "fp16" else "no", cpu=device.type == "cpu")
