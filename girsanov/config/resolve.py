"""Plain data completed and checked against what it is to become; every mistake is noted, not only the first."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError

from girsanov.config.parts import (
    MISSING,
    NeedsContext,
    call,
    describe,
    family_of,
    load,
    member,
    members,
    optional,
    parameters,
    shape,
)
from girsanov.errors import GirsanovError
from girsanov.settings import sentences, show, unknown


@dataclass
class Problems:
    """Mistakes found so far: dotted place and what is wrong."""

    found: list[tuple[str, str]] = field(default_factory=list)

    def add(self, place: str, what: str) -> None:
        """Notes a mistake."""
        self.found.append((place, what))


def resolve(annotation: Any, value: Any, place: str, problems: Problems, default: Any = MISSING) -> Any:
    """The data with defaults filled in and values checked; mistakes go to ``problems``."""
    if value is None and optional(annotation):
        return None
    how, what = shape(annotation)
    if how in ("part", "family"):
        return _resolve_part(family_of(what) or what, value, place, problems, default)
    if how == "fields":
        return _resolve_fields(what, value, place, problems, default=default)
    if how == "list":
        if not isinstance(value, list | tuple):
            problems.add(place, f"must be a list, not {show(value)}")
            return value
        return [resolve(what, v, f"{place}.{i}", problems) for i, v in enumerate(value)]
    if how == "call":
        try:
            load(value) if isinstance(value, str) else None
        except GirsanovError as error:
            problems.add(place, str(error))
        return describe(value)
    return _resolve_leaf(annotation, value, place, problems)


def _resolve_leaf(annotation: Any, value: Any, place: str, problems: Problems) -> Any:
    if annotation is torch.dtype:
        return describe(value)
    try:
        return describe(TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value))
    except ValidationError as error:
        where, what = sentences(error)[0]
        problems.add(f"{place}.{where}" if where and where.isdigit() else place, what)
        return value


def _resolve_part(family: type, value: Any, place: str, problems: Problems, default: Any) -> Any:
    data = {"kind": value} if isinstance(value, str) else value
    if not isinstance(data, Mapping):
        problems.add(place, f"must be a name or {{kind: name, ...}}, not {show(value)}")
        return value
    base = describe(default) if default is not MISSING and default is not None else {}
    if "kind" not in data:
        data = {**base, **data}
    if "kind" not in data:
        problems.add(place, f"needs a kind, one of {', '.join(members(family))}")
        return value
    kind = data["kind"]
    try:
        factory = member(family, kind if isinstance(kind, str) else show(kind))
    except GirsanovError as error:
        problems.add(place, str(error))
        return data
    options = {k: v for k, v in data.items() if k != "kind"}
    return {"kind": kind, **_resolve_fields(factory, options, place, problems, part=True)}


def _resolve_fields(
    factory: Any, value: Any, place: str, problems: Problems, part: bool = False, default: Any = MISSING
) -> Any:
    if not isinstance(value, Mapping):
        problems.add(place, f"must hold settings, not {show(value)}")
        return value
    known, before = parameters(factory), len(problems.found)
    if isinstance(default, factory if isinstance(factory, type) else ()):
        known = {name: (annotation, getattr(default, name)) for name, (annotation, _) in known.items()}
    for name in value:
        if name not in known:
            why = getattr(factory, "absent", {}).get(name)
            problems.add(f"{place}.{name}".lstrip("."), why or unknown(str(name), known))
    full = {}
    for name, (annotation, usual) in known.items():
        inner = f"{place}.{name}".lstrip(".")
        if name in value:
            full[name] = resolve(annotation, value[name], inner, problems, usual)
        elif shape(annotation)[0] == "part" and usual is not MISSING:
            full[name] = resolve(annotation, describe(usual), inner, problems)
        elif usual is not MISSING:
            full[name] = describe(usual)
        elif shape(annotation)[0] not in ("family", "fields"):
            problems.add(inner, "is missing")
    if part and len(problems.found) == before:
        _try(factory, full, place, problems)
    return full


def _try(factory: Any, full: Mapping[str, Any], place: str, problems: Problems) -> None:
    """Notes what the constructor itself objects to, where it can be called yet."""
    try:
        call(factory, full, ())
    except NeedsContext:
        pass
    except GirsanovError as error:
        problems.add(place, f"is refused: {error}")
