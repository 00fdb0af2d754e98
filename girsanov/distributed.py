"""Statistics over all processes, through one small object, so that methods stay single-device code.

``Reduce()`` is one process: every operation is the identity. ``Reduce(accelerator)`` spans the processes of an
Accelerate launch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator


class Reduce:
    """Gathers, sums and means over processes."""

    def __init__(self, accelerator: "Accelerator | None" = None) -> None:
        self.accelerator = accelerator

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return 1 if self.accelerator is None else self.accelerator.num_processes

    @property
    def rank(self) -> int:
        """This process's number."""
        return 0 if self.accelerator is None else self.accelerator.process_index

    def gather(self, x: Tensor) -> Tensor:
        """The tensors [B, ...] of all processes, stacked in rank order: [world_size * B, ...]."""
        if self.accelerator is None or self.world_size == 1:
            return x
        return self.accelerator.gather(x)

    def mean(self, x: Tensor) -> Tensor:
        """The mean over processes of a tensor of any one shape."""
        if self.accelerator is None or self.world_size == 1:
            return x
        return self.accelerator.reduce(x, "mean")

    def mean_host(self, x: Tensor) -> Tensor:
        """The mean over processes of a host tensor."""
        if self.accelerator is None or self.world_size == 1:
            return x
        device = self.accelerator.device
        return self.mean(x.to(device, torch.float32 if device.type == "mps" else x.dtype)).cpu()

    def local(self, x: Tensor) -> Tensor:
        """This process's rows of a gathered tensor."""
        n = len(x) // self.world_size
        return x[self.rank * n : (self.rank + 1) * n]

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replaces every gradient by its mean over processes, in one message a dtype."""
        if self.world_size == 1:
            return
        for dtype in {p.dtype for p in parameters}:
            group = [p for p in parameters if p.dtype == dtype]
            for p in group:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            flat = self.mean(torch.cat([p.grad.flatten() for p in group if p.grad is not None]))
            start = 0
            for p in group:
                if p.grad is not None:
                    p.grad.copy_(flat[start : start + p.numel()].view_as(p))
                start += p.numel()
