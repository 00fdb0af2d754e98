"""A stand-in for a device without float64 (a Mac's GPU): tensors that say they are on "mps" and are kept on the host.

Every operation on them runs on the host's copy. What the real device refuses is refused here, with its errors: float64
in any way (made there, moved there, or by promotion), and host tensors of more than no dimensions among its own, but
as indices and in copies. So a run under ``narrow()`` takes the branches that it would take there, and fails where it
would. What it cannot show: operators that the real device lacks, its kernels' rounding, its speed.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

NAME = "mps"
INSIDE = torch.device("meta", 7)  # what C++ takes the device for; no other code asks for this one
WIDE = (torch.float64, torch.complex128)
ACROSS = {  # takes host tensors besides its own: copies, and indices
    "aten::copy_", "aten::_to_copy", "aten::index.Tensor", "aten::index_put", "aten::index_put_",
    "aten::_index_put_impl_",
}  # fmt: skip


def inside(device: Any) -> bool:
    """Whether a device is the stand-in, under either name: within backward passes names come untranslated."""
    return device is not None and (torch.device(device) == INSIDE or torch.device(device).type == NAME)


def each(change: Callable[[Any], Any], value: Any) -> Any:
    """The change made to every leaf of tuples, lists and dicts."""
    if isinstance(value, tuple | list):
        return type(value)(each(change, v) for v in value) if type(value) in (tuple, list) else value
    if isinstance(value, dict):
        return {k: each(change, v) for k, v in value.items()}
    return change(value)


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors among the leaves."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for v in value:
            yield from tensors(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from tensors(v)


class There(Tensor):
    """A tensor on the stand-in; to C++ it is a meta tensor, to Python it is on "mps"."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> "There":
        shape = {"strides": host.stride(), "storage_offset": host.storage_offset(), "dtype": host.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, host.size(), device=INSIDE, **shape)  # type: ignore[attr-defined]
        made.host = host
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """What code sees that asks."""
        return torch.device(NAME, 0)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"There({self.host!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def there(value: Any) -> Any:
    """A host tensor as one of the stand-in. Raises TypeError on float64, as the real device does."""
    if not isinstance(value, Tensor) or isinstance(value, There):
        return value
    if value.dtype in WIDE:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
    return There(value)


def here(value: Any) -> Any:
    """The host's copy."""
    return value.host if isinstance(value, There) else value


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the host's copies; the result is on the stand-in unless a device says otherwise."""
    device = kwargs.get("device")
    leaves = list(tensors((args, kwargs)))
    mine = [v for v in leaves if isinstance(v, There)]
    name = func._schema.name + (f".{func._schema.overload_name}" if func._schema.overload_name else "")
    if mine and not ACROSS & {name, func._schema.name}:
        strangers = [v for v in leaves if not isinstance(v, There) and v.ndim > 0]
        if strangers:
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, found {NAME} and cpu")
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    out = func(*each(here, args), **each(here, kwargs))
    stays = bool(mine) if device is None else inside(device)
    if device is not None and not stays and isinstance(out, Tensor) and any(out is v.host for v in mine):
        out = out.clone()
    if not stays or (name == "aten::copy_" and not isinstance(args[0], There)):
        return args[0] if name == "aten::copy_" else out
    out = each(there, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if mine and device is None else out


class Factories(TorchDispatchMode):
    """Tensors that are made on the stand-in, or moved there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if inside(kwargs.get("device")) or any(isinstance(v, There) for v in tensors((args, kwargs))):
            return run(func, args, kwargs)
        return func(*args, **kwargs)


def renamed(value: Any) -> Any:
    """The stand-in's name as C++ has it: without the backend it would refuse the real one."""
    if isinstance(value, torch.device) and value.type == NAME:
        return INSIDE
    return value


class Names(TorchFunctionMode):
    """Translates the device's name on the way to C++."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.device:
            return func(*args, **kwargs)
        if func is torch.Tensor.to:
            args = tuple(INSIDE if isinstance(a, str) and a.startswith(NAME) else a for a in args)
        if str(kwargs.get("device")).startswith(NAME):
            kwargs["device"] = INSIDE
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor):
            there_too = kwargs.get("device") == INSIDE
            found = func(*args, **{**kwargs, "device": "cpu"})
            return there(found) if there_too else found
        if func is torch.Tensor.tolist and isinstance(args[0], There):
            return args[0].host.tolist()
        return func(*each(renamed, args), **each(renamed, kwargs))


@contextlib.contextmanager
def narrow() -> Iterator[torch.device]:
    """The stand-in while it lasts: its device, for models, prompts and noise."""
    noise = importlib.import_module("girsanov.noise")
    plain = noise.generator
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "generator", lambda key, device="cpu": plain(key))  # it has no generators of its own
        patch.setattr(torch.mps, "synchronize", lambda: None)  # the host is never behind
        with Names(), Factories():
            yield torch.device(NAME)


@contextlib.contextmanager
def on_host() -> Iterator[None]:
    """Within ``narrow()``: the host as it is, for code that has modes of its own (loaders of pretrained weights)."""
    with torch.overrides._pop_mode_temporarily(), torch.utils._python_dispatch._pop_mode_temporarily():
        yield
