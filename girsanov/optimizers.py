r"""Optimisers by name, and how their rate changes over a run.

Over the first ``warmup`` updates the rate rises linearly; after them, with ``u`` in [0, 1] the share of the rest that
is done, it is

.. math:: constant: 1, \qquad linear: 1 - u, \qquad cosine: (1 + \cos \pi u) / 2
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from girsanov.distributed import is_split
from girsanov.errors import GirsanovError

LARGE = 10_000_000  # numbers: below, a step is short, and runs of small networks are the same to the bit as they were


def rest(warmup: int, total: int, update: int) -> float:
    """``u``: the share that is done of the updates after the warm-up, at most 1."""
    return min(1.0, (update - warmup) / max(1, total - warmup))


def warmed(curve: Callable[[float], float]) -> Callable[[int, int, int], float]:
    """A curve in u behind a warm-up: ``rate(warmup, total, update)``."""

    def rate(warmup: int, total: int, update: int) -> float:
        return (update + 1) / warmup if update < warmup else curve(rest(warmup, total, update))

    return rate


SCHEDULES: dict[str, Callable[[int, int, int], float]] = {
    "constant": warmed(lambda u: 1.0),
    "linear": warmed(lambda u: 1.0 - u),
    "cosine": warmed(lambda u: 0.5 * (1 + math.cos(math.pi * u))),
}
"""Factor of the learning rate, ``rate(warmup, total, update)``."""


def eight_bit() -> Any:
    """AdamW of bitsandbytes, its averages in 8 bits. Raises GirsanovError where it is missing or cannot be imported."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except Exception:  # a build for other hardware fails in its own ways
        raise GirsanovError(
            "train.optimizer = adamw8bit needs the package bitsandbytes: pip install 'girsanov[eightbit]', or leave "
            "the setting out"
        ) from None
    return AdamW8bit


def in_one_pass(optimizer: torch.optim.Optimizer) -> None:
    """Has AdamW step the weights of a large network in one pass over memory, with no temporaries.

    Otherwise it makes some ten passes, and holds a copy of all weights on the way on a GPU. The numbers are the same
    but for rounding. Small networks, split ones and other optimisers are left as they are.
    """
    if not isinstance(optimizer, torch.optim.AdamW):
        return
    for group in optimizer.param_groups:
        ordinary = all(p.device.type in ("cpu", "cuda") and not is_split(p) for p in group["params"])
        if ordinary and sum(p.numel() for p in group["params"]) >= LARGE:
            group["fused"] = True


OPTIMIZERS: dict[str, Callable[[], Any]] = {"adamw": lambda: torch.optim.AdamW, "adamw8bit": eight_bit}
"""Classes of optimisers, fetched when one is wanted."""
