"""Micro-batches: how much of a batch goes through the network at a time, and less of it where memory is short.

A micro-batch changes memory and not the result.
"""

import copy
import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from girsanov.errors import GirsanovError
from girsanov.methods.base import Method, Turn
from girsanov.noise import generator
from girsanov.types import Batch

S = TypeVar("S")
T = TypeVar("T")
SHUFFLE = 1  # noise stream of the minibatch order
LOWER = (
    "make samples smaller (pipeline.height and pipeline.width), recompute activations (pipeline.checkpointing=true), "
    "take precision=bf16, train.optimizer=adamw8bit or adapters of a lower rank (lora)"
)
"""What is left to do when a single sample does not fit."""


def partition(batch: Batch, minibatches: int, micro_batch: int | None, turn: Turn) -> list[list[Batch]]:
    """The batch as minibatches of micro-batches, in an order keyed by the iteration.

    Raises GirsanovError on more minibatches than samples.
    """
    n = len(batch)
    if minibatches > n:
        raise GirsanovError(
            f"minibatches = {minibatches} exceeds the {n} samples of a process: lower it or collect more"
        )
    if minibatches == 1 and (micro_batch is None or micro_batch >= n):
        return [[batch]]
    key = (turn.seed, turn.index, SHUFFLE, turn.reduce.rank)
    order = torch.randperm(n, generator=generator(key)) if minibatches > 1 else torch.arange(n)
    parts = order.tensor_split(minibatches)
    return [[batch.take(rows) for rows in part.split(micro_batch or n)] for part in parts]


def largest(part: Sequence[Batch]) -> int:
    """Samples of the largest micro-batch."""
    return max(map(len, part))


def halved(part: Sequence[Batch]) -> list[Batch]:
    """The same samples in micro-batches of at most half the size. Raises GirsanovError at single samples."""
    size = largest(part)
    if size == 1:
        raise GirsanovError(f"out of memory with one sample at a time: {LOWER}")
    return [micro.take(rows) for micro in part for rows in torch.arange(len(micro)).split((size + 1) // 2)]


def smaller_lots(method: Method, samples: int) -> Method:
    """The method with half as many samples in a lot of its rollout; its networks and parts are the same objects.

    Raises GirsanovError where it rolls out a single sample already, or all at once.
    """
    lot = getattr(method, "rollout_micro_batch", 0)
    if lot == 0:
        raise GirsanovError(
            f"out of memory while {samples} samples are collected at once: lower groups or group_size, or {LOWER}"
        )
    lot = min(lot or samples, samples)
    if lot == 1:
        raise GirsanovError(f"out of memory while one sample at a time is rolled out: {LOWER}")
    made = copy.copy(method)
    object.__setattr__(made, "rollout_micro_batch", (lot + 1) // 2)
    return made


def retried(
    attempt: Callable[[S], T], first: S, shrink: Callable[[S], S], undo: Callable[[], None] = lambda: None
) -> tuple[T, S]:
    """``attempt(first)``, and after an out-of-memory error with what ``shrink`` leaves of it, until it fits.

    Args:
        attempt: what needs memory.
        first: what it is given.
        shrink: less of that; raises GirsanovError where there is no less.
        undo: takes back what an attempt that failed has left.

    Returns:
        What the attempt gave, and what it was given.
    """
    given = first
    while True:
        try:
            return attempt(given), given
        except torch.OutOfMemoryError:
            pass  # the exception keeps the tensors of its frames: it has to be gone before the next attempt
        undo()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        given = shrink(given)
