"""The parts of an iteration that take memory: each is tried again with less at a time after an out-of-memory error.

Nothing has moved by then that matters: a rollout's noise is keyed by sample, statistics over samples are taken after
all rollouts, the method's state is put back, and gradients are summed from zero between two optimiser steps. What
fitted is what the next iterations begin with (``run.config.micro_batch``, ``run.method.rollout_micro_batch``).

Several processes do it together: where one runs out of memory, all of them take back what they have done and try again
with less (``Reduce.attempt``), so that they keep one layout and meet equally often.

Where a network is split over processes, each of its passes is a meeting and one that has broken off cannot be taken
back, nor can a backward pass of DeepSpeed's engine: there the error is told.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from tqdm import tqdm

from girsanov.distributed import is_split
from girsanov.errors import GirsanovError
from girsanov.meters import Meter
from girsanov.methods.base import Method, Turn
from girsanov.micro_batches import halved, largest, retried, smaller_lots
from girsanov.types import Batch, Prompts

if TYPE_CHECKING:
    from girsanov.train import Run

S = TypeVar("S")
T = TypeVar("T")
FIRST = ("ratio_min", "ratio_max")  # metrics of which the first update's are kept apart


def collect(run: "Run", prompts: Prompts, turn: Turn) -> Batch:
    """The method's batch; with smaller lots in the rollout where all at once do not fit."""
    before = dict(run.state)

    def attempt(method: Method) -> Batch:
        with torch.no_grad():
            return method.collect(run.policy, prompts, run.state, turn)

    def undo() -> None:
        run.state.clear()
        run.state.update(before)

    batch, method = fitted(run, attempt, run.method, lambda m: smaller_lots(m, len(prompts)), undo)
    if method is not run.method:
        run.method = method
        say(f"samples are rolled out {method.rollout_micro_batch} at a time")  # type: ignore[attr-defined]
    return batch


def anchor(run: "Run", part: Sequence[Batch]) -> list[Batch]:
    """The micro-batches of a minibatch scored before the first of several updates; smaller ones where they must be."""
    found, given = fitted(run, lambda p: [run.method.anchor(run.policy, m, run.state) for m in p], part, halved)
    remembered(run, part, given)
    return found


def accumulate(run: "Run", part: Sequence[Batch], meter: Meter, first: bool) -> Sequence[Batch]:
    """Adds up the gradients of a minibatch, and its metrics; the micro-batches that fitted.

    Args:
        run: whose method and policy.
        part: the minibatch, as micro-batches.
        meter: takes the metrics.
        first: of an iteration; the alarm that the ratio is 1 looks at this one.
    """
    total = sum(map(len, part))

    def attempt(given: Sequence[Batch]) -> Meter:
        own = Meter()
        for micro in given:
            share = len(micro) / total
            for chunk in run.method.losses(run.policy, micro, run.state):
                run.steps.backward(chunk.loss * share)
                own.add_loss(chunk, share)
                own.add(chunk.metrics, share)
                if first:
                    own.add({f"first/{k}": v for k, v in chunk.metrics.items() if k in FIRST}, share)
        return own

    def shrink(given: Sequence[Batch]) -> Sequence[Batch]:
        less = halved(given)
        return anchor(run, less) if first and run.config.updates > 1 else less  # old densities in the same layout

    def undo() -> None:
        for p in run.parameters():
            p.grad = None

    found, given = fitted(run, attempt, part, shrink, undo)
    meter.merge(found)
    return remembered(run, part, given)


def fitted(
    run: "Run", attempt: Callable[[S], T], first: S, shrink: Callable[[S], S], undo: Callable[[], None] = lambda: None
) -> tuple[T, S]:
    """``retried`` on all processes; once where they split the network. Raises GirsanovError where nothing fits."""

    def together(given: S) -> T:
        with run.reduce.attempt():
            return attempt(given)

    if run.steps.repeatable and not any(is_split(p) for p in run.policy.net.parameters()):
        return retried(together, first, shrink, undo)
    try:
        return attempt(first), first
    except torch.OutOfMemoryError as error:
        raise GirsanovError(
            "out of memory, and what is split over processes cannot be tried again with less: lower "
            "train.micro_batch and method.rollout_micro_batch"
        ) from error


def remembered(run: "Run", before: Sequence[Batch], given: Sequence[Batch]) -> Sequence[Batch]:
    """What fitted; a smaller size is that of the following iterations."""
    known = run.config.micro_batch or largest(before)
    if largest(given) < min(known, largest(before)):
        run.config = dataclasses.replace(run.config, micro_batch=largest(given))
        say(f"micro-batches have {largest(given)} samples")
    return given


def say(what: str) -> None:
    """Tells that less is done at a time."""
    tqdm.write(f"out of memory: {what} from here on")
