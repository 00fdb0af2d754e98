"""How much memory a run takes: what it holds, and what its backward passes keep.

What autograd keeps for a backward pass is counted while a pass runs: every tensor that is saved books its storage once
(two layers that save the same activation share it) and gives it back when the graph is freed, so the largest sum is
what a pass needs at a time. Parameters and buffers are not counted, they are there anyway. It is the same on every
device. Under checkpointing the activations of the one part that is computed again are not seen.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

UNITS = ("B", "KB", "MB", "GB", "TB")


def told(count: float) -> str:
    """Bytes as people read them, in powers of 1000."""
    for unit in UNITS:
        if count < 1000 or unit == UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def tensors(value: Any) -> Iterable[Tensor]:
    """All tensors in dataclasses, mappings and sequences, however deep."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from tensors(v)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for v in value:
            yield from tensors(v)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            yield from tensors(getattr(value, f.name))


def size(*values: Any) -> int:
    """Bytes of all tensors in some values; storage that several share counts once."""
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(values)}
    return sum(found.values())


def held(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    return size([*module.parameters(), *module.buffers()])


class Kept:
    """A tensor that a graph keeps; its bytes are given back when the graph is freed."""

    def __init__(self, tensor: Tensor, count: "SavedBytes") -> None:
        self.tensor, self.count = tensor, count
        self.place, self.bytes = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        count.book(self, 1)

    def __del__(self) -> None:
        self.count.book(self, -1)


class SavedBytes:
    """Counts what autograd keeps while it is entered: ``with SavedBytes(net) as count: ...; count.peak``.

    Args:
        net: its parameters and buffers are not counted.
    """

    def __init__(self, net: nn.Module) -> None:
        self.own = {t.untyped_storage().data_ptr() for t in [*net.parameters(), *net.buffers()]}
        self.users: dict[int, int] = {}
        self.now = self.peak = 0
        self.hooks = saved_tensors_hooks(self._pack, lambda kept: kept.tensor if isinstance(kept, Kept) else kept)

    def book(self, kept: Kept, change: int) -> None:
        """A tensor comes or goes; storage counts while anybody uses it."""
        before = self.users.get(kept.place, 0)
        self.users[kept.place] = before + change
        if (before == 0 and change > 0) or (before == 1 and change < 0):
            self.now += change * kept.bytes
            self.peak = max(self.peak, self.now)

    def _pack(self, tensor: Tensor) -> Tensor | Kept:
        plain = tensor.layout is torch.strided and tensor.untyped_storage().data_ptr() not in self.own
        return Kept(tensor.detach(), self) if plain else tensor

    def __enter__(self) -> "SavedBytes":
        self.hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hooks.__exit__(kind, error, trace)
