r"""FLOPs of the passes through a network: counted once for each shape of its inputs, times the passes that are made.

With F the FLOPs of a forward pass (``torch.utils.flop_counter``: two a multiply-add, matrix products, convolutions and
attention), a pass costs

    F            forward
    F            the gradient in the activations, when a gradient comes back to its output
    s F          the gradient in the weights, s being the share of the weights that require one

so 3 F with all weights trained, and about 2 F with adapters or where only the gradient in x is asked for. These are the
FLOPs that the model needs; what activation checkpointing computes again is left out, as usual for the MFU (Chowdhery et
al. 2022, arXiv:2204.02311, Appendix B). The gradient in the activations is charged in full where only the last layers
train.

The network is watched through its hooks, so views, guidance and micro-batches are counted as they happen. The counting
itself watches one ordinary pass a shape; no pass is made for it. That pass runs without ``torch.compile``, which would
give a network up for good when it meets a counter at its first call.
"""

import dataclasses
from collections.abc import Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from girsanov.clock import Clock, current

ACTIVATIONS = 1.0  # the gradient in the activations, in forward passes


class Counting(TorchDispatchMode):
    """Adds up the FLOPs of what runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, kinds: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Runs an operation and counts it; one without a formula that is made of others is taken apart."""
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        return out


@contextmanager
def counting() -> Iterator[Counting]:
    """Counts what runs inside, and runs what is compiled as it was written."""
    stance = getattr(torch.compiler, "set_stance", None)  # of torch 2.6
    with nullcontext() if stance is None else stance("force_eager"), Counting() as counter:
        yield counter


class Passes:
    """Books the FLOPs of a network's passes on the clock of the iteration.

    Args:
        net: its calls are watched until ``close``.
    """

    def __init__(self, net: nn.Module) -> None:
        self.forward: dict[Hashable, int] = {}
        self.counting: list[tuple[Hashable, Counting, ExitStack]] = []
        self.handles = [
            net.register_forward_pre_hook(self._before, with_kwargs=True),
            net.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]

    def close(self) -> None:
        """Watches no longer."""
        for handle in self.handles:
            handle.remove()

    @torch.compiler.disable
    def _before(self, net: nn.Module, args: Any, kwargs: Any) -> None:
        key = signature((args, kwargs))
        if current() is not None and key not in self.forward and not self.counting and not recomputing():
            stack = ExitStack()
            self.counting.append((key, stack.enter_context(counting()), stack))

    @torch.compiler.disable
    def _after(self, net: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        key, clock = signature((args, kwargs)), current()
        if self.counting and self.counting[-1][0] == key:
            _, counter, stack = self.counting.pop()
            stack.close()
            if output is not None:
                self.forward[key] = counter.flops
        if clock is None or recomputing() or key not in self.forward:
            return
        flops = float(self.forward[key])
        clock.count(flops)
        leaf = next((t for t in tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad), None)
        if leaf is not None:
            leaf.register_hook(Backward(clock, flops * (ACTIVATIONS + trained_share(net))))


@dataclasses.dataclass(frozen=True)
class Backward:
    """Books a backward pass when its gradient comes."""

    clock: Clock
    flops: float

    def __call__(self, gradient: Tensor) -> None:
        """Books it; the gradient stays as it is."""
        self.clock.count(self.flops)


def trained_share(net: nn.Module) -> float:
    """The share of the weights that require a gradient as the network is called: 0 for views of other weights."""
    sizes = [(p.numel(), p.requires_grad) for p in net.parameters()]
    return sum(n for n, trained in sizes if trained) / max(1, sum(n for n, _ in sizes))


def recomputing() -> bool:
    """Whether a backward pass is under way: activation checkpointing calls the network again from there."""
    return torch._C._current_graph_task_id() != -1


def signature(value: Any) -> Hashable:
    """What the FLOPs of a call depend on: the shapes of all tensors in its arguments, and plain values."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return tuple((k, signature(v)) for k, v in value.items())
    if isinstance(value, tuple | list):
        return tuple(signature(v) for v in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return tuple(signature(getattr(value, f.name)) for f in dataclasses.fields(value))
    return value if isinstance(value, int | float | str | bool) or value is None else type(value).__name__
