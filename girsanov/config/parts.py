"""Parts: objects described by plain data, ``{kind: name, option: value}``, and built from their families' dicts.

A *family* is an abstract class with a dict of its members (samplers, grids, costs, methods, ...); the dict is found by
its annotation, ``dict[str, type[Family]]``. The description of an object is read off its constructor's signature, so a
new member, or a new family, needs no configuration class. Three functions do it:

    resolve(annotation, data)       -> data with every default filled in, every mistake noted (resolve.py)
    construct(annotation, data)     -> the object
    describe(object)                -> data

A ``kind`` is a name of the family's dict, or ``my_file.py:name`` (or ``package.module:name``): the user's own code; of
a reward it may be the folder of a trained one.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import GRIDS, Grid
from girsanov.settings import unknown

T = TypeVar("T")
MISSING = dataclasses.MISSING

WRAPPERS = {
    "Reward": "girsanov.rewards.function:as_reward",
    "Detector": "girsanov.rewards.detected:as_detector",
    "TextReward": "girsanov.language.rewards:as_text_reward",
}
"""Families that a plain function of the user can be wrapped into a member of."""

FOLDERS = {
    "Reward": ("reward.json", "girsanov.rewards.trained:Trained"),
    "TextReward": ("reward.json", "girsanov.language.rewards:TrainedText"),
}
"""Families whose members may be folders on disk: the file that marks one, and the class that reads it."""


@dataclass(frozen=True)
class Part(Generic[T]):
    """The description of an object of family T: the name of a member and its options, as plain data."""

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> dict[str, Any]:
        """``{kind: ..., option: ...}``."""
        return {"kind": self.kind, **self.options}


class NeedsContext(Exception):  # noqa: N818 (a signal, never shown)
    """An object wants a part that only the recipe can give (a reward, a process)."""


# ---- families and members

PLACES: dict[type, tuple[types.ModuleType, str]] = {}
"""The module and the name of the dict of every family asked for so far."""


def load(address: str) -> Any:
    """The object at ``package.module:name`` or ``file.py:name``."""
    place, _, name = address.rpartition(":")
    if place.endswith(".py"):
        from girsanov.rewards.function import load_object

        return load_object(address)
    try:
        return getattr(importlib.import_module(place), name)
    except (ImportError, AttributeError) as error:
        raise GirsanovError(f"{address} cannot be loaded: {error}") from None


def registry(family: type) -> Mapping[str, Callable[..., Any]] | None:
    """The dict of a family: the one annotated ``dict[str, type[Family]]`` in a module of the package."""
    if family is Grid:
        return {**GRIDS, "times": Grid}
    if not inspect.isabstract(family):
        return None
    home = sys.modules[family.__module__]
    package = sys.modules.get(home.__package__ or "")
    found = _annotated(family)
    if found is None and package is not None and hasattr(package, "__path__"):
        for sibling in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(sibling.name)
        found = _annotated(family)
    return found


def _annotated(family: type) -> Mapping[str, Callable[..., Any]] | None:
    """The dict in a module loaded so far; its place is remembered, for a configuration asks hundreds of times."""
    if family not in PLACES:
        wanted = (dict[str, type[family]], dict[str, Callable[..., family]])  # type: ignore[valid-type]
        root = family.__module__.partition(".")[0]
        modules = [m for name, m in list(sys.modules.items()) if name == root or name.startswith(f"{root}.")]
        annotated = ((m, v) for m in modules for v, a in getattr(m, "__annotations__", {}).items() if a in wanted)
        if (place := next(annotated, None)) is None:
            return None
        PLACES[family] = place
    return getattr(*PLACES[family])


def members(family: type) -> Mapping[str, Callable[..., Any]]:
    """The members of a family by name."""
    return registry(family) or {}


def family_of(annotation: Any) -> type | None:
    """The family that a class belongs to: the abstract class it is or derives from, one with a dict before others."""
    abstract = [c for c in annotation.__mro__ if inspect.isabstract(c)] if isinstance(annotation, type) else []
    if annotation is Grid:
        return Grid
    return next((c for c in abstract if registry(c) is not None), abstract[0] if abstract else None)


def spoken(family: type) -> str:
    """What messages call a family: "LanguageMethod" is "language method"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", family.__name__).lower()


def member(family: type, kind: str) -> Callable[..., Any]:
    """What builds the member ``kind``, which may be a folder. Raises GirsanovError with the nearest name."""
    marker, reader = FOLDERS.get(family.__name__, ("", ""))
    if marker and (Path(kind) / marker).is_file():
        return lambda: load(reader)(kind)
    if ":" in kind:
        return _own(family, load(kind), kind)
    known = members(family)
    if kind not in known:
        raise GirsanovError(f"{kind!r} {unknown(kind, known, spoken(family))}")
    return known[kind]


def _own(family: type, found: Any, address: str) -> Callable[..., Any]:
    """The user's own class or factory; a plain function becomes a member where the family can wrap one."""
    if isinstance(found, family):
        return lambda: found
    if isinstance(found, type) and not issubclass(found, family):
        raise GirsanovError(f"{address} is no {family.__name__}: derive it from girsanov's {family.__name__}")
    if isinstance(found, type) or family.__name__ not in WRAPPERS:
        return found
    wrap = load(WRAPPERS[family.__name__])
    return lambda: wrap(found, address.rpartition(":")[2])


# ---- signatures


def parameters(factory: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Name -> (annotation, default or MISSING) of what a class or function is built from."""
    if dataclasses.is_dataclass(factory):
        hints = get_type_hints(factory, include_extras=True)
        found = {}
        for f in dataclasses.fields(factory):
            if f.init:
                default = f.default if f.default_factory is MISSING else f.default_factory()
                found[f.name] = (hints[f.name], default)
        return found
    target = inspect.unwrap(getattr(factory, "__init__")) if isinstance(factory, type) else factory  # noqa: B009
    hints = get_type_hints(target, include_extras=True)
    signature = inspect.signature(factory)
    empty = inspect.Parameter.empty
    return {
        name: (hints.get(name, Any), MISSING if p.default is empty else p.default)
        for name, p in signature.parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def shape(annotation: Any) -> tuple[str, Any]:
    """How an annotation is read: ("part" | "family" | "fields" | "list" | "call" | "leaf", what it is about)."""
    if get_origin(annotation) is Annotated:
        return shape(get_args(annotation)[0])
    if get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [shape(a) for a in get_args(annotation) if a is not type(None)]
        return next((s for s in inner if s[0] != "leaf"), ("leaf", annotation))
    if get_origin(annotation) is Part or annotation is Part:
        return "part", get_args(annotation)[0]
    if family_of(annotation):
        return "family", annotation
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return "fields", annotation
    if get_origin(annotation) in (tuple, list, Sequence) and get_args(annotation):
        inside = shape(get_args(annotation)[0])
        return ("list", get_args(annotation)[0]) if inside[0] in ("part", "family", "fields") else ("leaf", annotation)
    if get_origin(annotation) is Callable or annotation is Callable:
        return "call", annotation
    return "leaf", annotation


def optional(annotation: Any) -> bool:
    """Whether None is allowed."""
    union = get_origin(annotation) in (typing.Union, types.UnionType)
    return annotation is type(None) or (union and type(None) in get_args(annotation))


# ---- object -> data


def describe(value: Any) -> Any:
    """An object as plain data that ``construct`` builds an equal object from."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Part):
        return value.data
    if isinstance(value, Grid):
        return _grid(value)
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, torch.dtype | torch.device):
        return str(value).removeprefix("torch.")
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, tuple | list | frozenset | set):
        return [describe(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if inspect.isfunction(value) or isinstance(value, type):
        return f"{value.__module__}:{value.__qualname__}"
    fields = {name: describe(getattr(value, name)) for name in parameters(type(value))}
    family = family_of(type(value))
    if family is None:
        return fields
    names = [n for n, m in members(family).items() if m is type(value)]
    return {"kind": names[0] if names else describe(type(value)), **fields}


def _grid(grid: Grid) -> dict[str, Any]:
    start, end = float(grid.ts[0]), float(grid.ts[-1])
    if grid == Grid.uniform(len(grid), start, end):
        return {"kind": "uniform", "n": len(grid), "start": start, "end": end}
    return {"kind": "times", "ts": grid.ts.tolist()}


# ---- data -> object


def construct(annotation: Any, data: Any, context: Sequence[object] = ()) -> Any:
    """The object that resolved data describes; missing parts are taken from ``context`` by their type."""
    if data is None:
        return None
    how, what = shape(annotation)
    if how == "part":
        return Part(data["kind"], {k: v for k, v in data.items() if k != "kind"})
    if how == "family":
        kind, options = (data, {}) if isinstance(data, str) else (data["kind"], data)
        options = {k: v for k, v in options.items() if k != "kind"}
        return call(member(family_of(what) or what, kind), options, context)
    if how == "fields":
        return call(what, data, context)
    if how == "list":
        made = [construct(what, v, context) for v in data]
        return made if get_origin(annotation) is list else tuple(made)
    if how == "call":
        return load(data) if isinstance(data, str) else data
    if annotation is torch.dtype:
        return getattr(torch, data)
    return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(data)


def call(factory: Callable[..., Any], data: Mapping[str, Any], context: Sequence[object]) -> Any:
    """Calls a class or function with the objects that its data describes."""
    values = {}
    for name, (annotation, default) in parameters(factory).items():
        if name in data:
            values[name] = construct(annotation, data[name], context)
            continue
        kind = shape(annotation)[1]
        found = [c for c in context if isinstance(kind, type) and isinstance(c, kind)]
        if found:
            values[name] = found[0]
        elif default is MISSING:
            raise NeedsContext(f"{name}: {getattr(kind, '__name__', kind)}")
    return factory(**values)


def make(family: Callable[..., T], part: Part[T], *context: object) -> T:
    """Builds a part; what its constructor needs and the description lacks comes from ``context`` by type."""
    try:
        return construct(family, part.data, context)
    except NeedsContext as lack:
        raise GirsanovError(
            f"{part.kind!r} needs {lack}, which this recipe does not have: choose another or give it in the settings"
        ) from None
