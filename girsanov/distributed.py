"""Statistics over all processes, through one small object, so that methods stay single-device code.

``Reduce()`` is one process: every operation is the identity. ``Reduce(accelerator)`` spans the processes of an
Accelerate launch.

Where a network is split over processes (``sharding.py``), its parameters, their gradients and the averages of the
optimiser are ``DTensor``: each process holds a part. ``held``, ``whole`` and ``like_split`` go between parts and whole
tensors and leave ordinary tensors alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator


class Reduce:
    """Gathers, sums and means over processes.

    Within ``attempt`` every meeting begins with a vote: if one process has run out of memory, the others learn of it at
    the meeting they wait in, and all of them raise ``torch.OutOfMemoryError``.
    """

    def __init__(self, accelerator: "Accelerator | None" = None) -> None:
        self.accelerator = accelerator
        self._attempting = False

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
        self._agree()
        return self.accelerator.gather(x.to(self._place(x))).to(x.device)

    def mean(self, x: Tensor) -> Tensor:
        """The mean over processes of a tensor of any one shape."""
        if self.accelerator is None or self.world_size == 1:
            return x
        self._agree()
        return self.accelerator.reduce(x.to(self._place(x)), "mean").to(x.device)

    def mean_host(self, x: Tensor) -> Tensor:
        """The mean over processes of a host tensor."""
        if self.accelerator is None or self.world_size == 1:
            return x
        device = self.accelerator.device
        return self.mean(x.to(device, torch.float32 if device.type == "mps" else x.dtype)).cpu()

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Something that all processes do, or none: out of memory on one of them is raised on all.

        Every process must have the same attempts in the same order. A process whose attempt is over waits for the
        others.
        """
        if self.world_size == 1:
            yield
            return
        self._attempting = True
        try:
            yield
            self._agree()
        except torch.OutOfMemoryError:
            if self._attempting:  # its own: the others wait in their next vote
                self._vote(True)
            raise
        finally:
            self._attempting = False

    def _agree(self) -> None:
        """Raises torch.OutOfMemoryError if another process has, within an attempt."""
        if self._attempting and self._vote(False):
            self._attempting = False
            raise torch.OutOfMemoryError("another process ran out of memory")

    def _vote(self, failed: bool) -> bool:
        """Whether any process has failed; all must call."""
        assert self.accelerator is not None
        flag = torch.tensor(float(failed), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def _place(self, x: Tensor) -> torch.device:
        """Where a message is made: NCCL takes none from the host, gloo all."""
        assert self.accelerator is not None
        device: torch.device = self.accelerator.device
        return x.device if device.type == "cpu" else device

    def local(self, x: Tensor) -> Tensor:
        """This process's rows of a gathered tensor."""
        n = len(x) // self.world_size
        return x[self.rank * n : (self.rank + 1) * n]

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replaces every gradient by its mean over processes, in one message a dtype.

        Those of split parameters are means already: the backward pass has reduced them.
        """
        if self.world_size == 1:
            return
        parameters = [p for p in parameters if not is_split(p)]
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


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
    """Scales all gradients so that their joint norm is at most ``limit``; the norm before, a scalar.

    Parts of split gradients count once each: the norm is that of the whole gradient, the same on every process.
    """
    plain = [p for p in parameters if not is_split(p)]
    split = [p for p in parameters if is_split(p)]
    if not split:
        return nn.utils.clip_grad_norm_(plain, limit)
    parts: Any = nn.utils.get_total_norm([p.grad for p in split if p.grad is not None])
    norm = torch.hypot(parts.full_tensor(), nn.utils.get_total_norm([p.grad for p in plain if p.grad is not None]))
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)  # as in clip_grad_norm_
    for p in parameters:
        if p.grad is not None:
            held(p.grad).mul_(scale.to(p.grad.device))
    return norm


# ---- tensors that are split over processes


def is_split(x: Tensor) -> bool:
    """Whether processes hold a part each (``DTensor``)."""
    return hasattr(x, "device_mesh")


def everywhere(flag: bool, device: torch.device) -> bool:
    """Whether a flag is up on all processes; all must call, and have a network that is split on ``device``."""
    found = torch.tensor(float(flag), device=device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MIN)
    return bool(found > 0)


def held(x: Any) -> Tensor:
    """What this process holds of a tensor, sharing its memory: all of it, or its part (maybe of no elements)."""
    return x.to_local() if is_split(x) else x


def whole(x: Any, keep: bool = True) -> Tensor | None:
    """A split tensor gathered on the host, an ordinary one as it is; None unless ``keep`` (all processes must call)."""
    found: Tensor = x.full_tensor().cpu() if is_split(x) else x
    return found if keep else None


def like_split(x: Tensor, like: Any) -> Tensor:
    """A whole tensor, the same on all processes, split as ``like`` is; no message is sent."""
    if not is_split(like):
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None)
