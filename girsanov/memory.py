"""How much memory a run takes: what it holds, and what its passes need at a time. It is counted, on every device alike.

``LiveBytes`` books the storage of every tensor that an operation makes, until it is freed: the largest sum is what the
operations inside need beside what was there, with gradients, with what checkpointing computes again, and with what
lives for a moment only.

``SavedBytes`` counts what autograd keeps for backward passes and nothing else: every tensor that is saved books its
storage once (two layers that save the same activation share it) and gives it back when the graph is freed. It is what
is left to count where a network is split over processes, whose weights come and go; they and other parameters and
buffers are not counted. The activations of a part that checkpointing computes again are not seen.
"""

import dataclasses
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from girsanov.distributed import held as part

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
    """Bytes that this process holds of all tensors in some values; storage that several share counts once."""
    every = [part(t).untyped_storage() for t in tensors(values) if t.device.type != "meta"]
    return sum({s.data_ptr(): s.nbytes() for s in every}.values())


def held(module: nn.Module) -> int:
    """Bytes that this process holds of a module's parameters and buffers."""
    return size([*module.parameters(), *module.buffers()])


class LiveBytes(TorchDispatchMode):
    """Counts what operations on a device make and hold: ``with LiveBytes(device) as count: ...; count.peak``.

    Args:
        device: of the tensors that count.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.now = self.peak = 0
        self.known: dict[int, Any] = {}
        self.pausing = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what is made inside."""
        before, self.pausing = self.pausing, True
        try:
            yield
        finally:
            self.pausing = before

    def __torch_dispatch__(self, func: Any, kinds: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Runs an operation and books the storage that it has made."""
        out = func(*args, **(kwargs or {}))
        if not self.pausing:
            given = {id(t.untyped_storage()) for t in self._tensors((args, kwargs))}
            for made in self._tensors(out):
                self._book(made.untyped_storage(), given)
        return out

    def _tensors(self, value: Any) -> Iterable[Tensor]:
        kinds = (t for t in tree_leaves(value) if isinstance(t, Tensor) and t.device.type == self.device.type)
        return (t for t in kinds if t.layout is torch.strided and not hasattr(t, "device_mesh"))

    def _book(self, storage: Any, given: set[int]) -> None:
        key, count = id(storage), storage.nbytes()
        if key in self.known or key in given:
            return

        def forget(_: Any) -> None:
            self.known.pop(key, None)
            self.now -= count

        self.known[key] = weakref.ref(storage, forget)
        self.now += count
        self.peak = max(self.peak, self.now)


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
        self.net = net
        self.own = {part(t).untyped_storage().data_ptr() for t in [*net.parameters(), *net.buffers()]}
        self.gathered: dict[nn.Module, set[int]] = {}
        self.handles: list[Any] = []
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
        if tensor.layout is not torch.strided:
            return tensor
        place = tensor.untyped_storage().data_ptr()
        plain = place not in self.own and not any(place in some for some in self.gathered.values())
        return Kept(tensor.detach(), self) if plain else tensor

    def _gather(self, module: nn.Module, *_: Any) -> None:
        """Notes where the weights of a split module are while it works."""
        there = (p for p in module.parameters(recurse=False) if p.layout is torch.strided)
        self.gathered[module] = {part(p).untyped_storage().data_ptr() for p in there}

    def _release(self, module: nn.Module, *_: Any) -> None:
        self.gathered.pop(module, None)

    def __enter__(self) -> "SavedBytes":
        for module in self.net.modules():
            if any(True for _ in module.parameters(recurse=False)):
                self.handles.append(module.register_forward_pre_hook(self._gather))
                self.handles.append(module.register_forward_hook(self._release, always_call=True))
        self.hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hooks.__exit__(kind, error, trace)
        for handle in self.handles:
            handle.remove()
