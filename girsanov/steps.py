"""How the gradients of a loss become one step of the optimisers: what processes say to each other on the way.

``Steps`` is ordinary: each process adds up its gradients, one message makes them means over processes, they are clipped
by their joint norm, and every optimiser steps. Gradients of a split network (``sharding.py``) are means already.
``zero.py`` has the engine of DeepSpeed in its place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from girsanov.distributed import Reduce, clip_gradients
from girsanov.optimizers import in_one_pass


@dataclass(frozen=True)
class Step:
    """What came of a step.

    Attributes:
        norm: of the mean gradient before clipping, a scalar; not finite where no step was taken because of it.
        skipped: under float16, whether the scaled gradients overflowed, so that nothing was stepped; else None.
    """

    norm: Tensor
    skipped: bool | None = None


class Steps:
    """Gradients that each process holds whole or as its part of a split network.

    Args:
        reduce: the other processes.
        limit: the joint norm of all gradients is clipped to it; None is none.
    """

    repeatable = True
    """Whether gradients can be taken back, to try again with less after an out-of-memory error."""

    def __init__(self, reduce: Reduce, limit: float | None) -> None:
        self.reduce = reduce
        self.limit = float("inf") if limit is None else limit
        self.accelerator = reduce.accelerator

    def prepare(self, net: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Any]:
        """The optimisers, as the run steps and saves them."""
        if self.accelerator is None or self.accelerator.scaler is None:  # a skipped step would be one unnoticed
            for optimizer in optimizers.values():
                in_one_pass(optimizer)
        if self.accelerator is None:
            return dict(optimizers)
        return {name: self.accelerator.prepare(optimizer) for name, optimizer in optimizers.items()}

    def backward(self, loss: Tensor) -> None:
        """Adds a loss's gradients, scaled under float16."""
        loss.backward() if self.accelerator is None else self.accelerator.backward(loss)

    def step(self, parameters: Sequence[nn.Parameter], optimizers: Mapping[str, Any]) -> Step:
        """Averages over processes, clips, steps and forgets the gradients.

        Under float16 a step whose gradients overflow is skipped as a whole.
        """
        self.reduce.average_gradients(parameters)
        scaler = None if self.accelerator is None else self.accelerator.scaler
        if self.accelerator is not None and scaler is not None:
            for optimizer in optimizers.values():
                self.accelerator.unscale_gradients(optimizer)
        norm = clip_gradients(parameters, self.limit)
        if scaler is None and not bool(norm.isfinite()):
            return Step(norm)
        for optimizer in optimizers.values():
            optimizer.step()
        skipped = None if scaler is None else any(o.step_was_skipped for o in optimizers.values())
        for optimizer in optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        return Step(norm, skipped)


def steps_of(reduce: Reduce, limit: float | None) -> Steps:
    """How a launch steps: by DeepSpeed's engine where that was asked for."""
    if getattr(reduce.accelerator, "deepspeed_plugin", None) is not None:
        from girsanov.zero import ZeroSteps

        return ZeroSteps(reduce, limit)
    return Steps(reduce, limit)
