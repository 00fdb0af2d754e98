"""Out of memory before a run has begun: while weights are read, put together and moved to the device.

Nothing can be tried with less there, as a weight has one size; what can be lowered is told in a sentence. The readers
of weights take most errors for a damaged file, so they let this one through (``ran_out``).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from girsanov.errors import GirsanovError

if TYPE_CHECKING:
    from girsanov.recipes.base import Recipe, RunConfig

HOST = ("not enough memory", "can't allocate memory", "out of memory", "cannot allocate memory")
"""What torch and the system say where the host's memory, or MPS's, is short; only CUDA has a class for it."""


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory was short, of the device or of the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error).lower() for words in HOST)


@contextmanager
def fitting(recipe: "Recipe", config: "RunConfig", device: torch.device) -> Iterator[None]:
    """Puts a run together. Raises GirsanovError, with what to lower, where that takes more memory than there is."""
    try:
        yield
    except Exception as error:
        if not ran_out(error):
            raise
        raise GirsanovError(
            f"out of memory while the run was put together on {device}, before any training: "
            f"{', '.join(lower(recipe, config, device))}"
        ) from error


def lower(recipe: "Recipe", config: "RunConfig", device: torch.device) -> Iterator[str]:
    """What takes less memory than these settings do, as advice."""
    if config.lora is None:
        yield "train adapters instead of all weights (lora=16)"
    elif config.precision == "fp32":
        yield "load the frozen weights in 16 bits (precision=bf16)"
    if config.train.ema is not None:
        yield "leave train.ema out"
    if recipe.splits and not config.shard:
        yield "split the network over several processes (shard=true, launched by torchrun)"
    if getattr(config, "reward", None) is not None and hasattr(config, "pipeline"):
        yield "score elsewhere (girsanov serve-reward, reward.kind=remote)"
    yield "take a smaller model" if hasattr(config, "model") else "take a smaller network"
    if device.type != "cpu":
        yield "or end what else holds memory of the device"
