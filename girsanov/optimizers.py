r"""Optimisers by name, and how their rate changes over a run.

Over the first ``warmup`` updates the rate rises linearly; after them, with ``u`` in [0, 1] the share of the rest that
is done, it is

.. math:: constant: 1, \qquad linear: 1 - u, \qquad cosine: (1 + \cos \pi u) / 2
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from girsanov.errors import GirsanovError


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


OPTIMIZERS: dict[str, Callable[[], Any]] = {"adamw": lambda: torch.optim.AdamW, "adamw8bit": eight_bit}
"""Classes of optimisers, fetched when one is wanted."""
