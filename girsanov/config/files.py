"""The configuration of a run: a typed dataclass from layers of plain data (defaults, YAML, ``key.sub=value``)."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from girsanov.config.parts import construct, describe
from girsanov.config.resolve import Problems, resolve
from girsanov.errors import GirsanovError

C = TypeVar("C")
Data = dict[str, Any]


def load_config(kind: type[C], *layers: Mapping[str, Any]) -> C:
    """A configuration from layers of data, later ones first in rank.

    Raises GirsanovError with every mistake at once, each with its dotted place and the nearest valid name.
    """
    data = functools.reduce(merge, layers, dict[str, Any]())
    problems = Problems()
    full = resolve(kind, data, "", problems)
    if problems.found:
        lines = [f"{place} {what}".strip() for place, what in problems.found]
        if len(lines) == 1:
            raise GirsanovError(lines[0])
        raise GirsanovError("\n  ".join([f"the configuration has {len(lines)} mistakes:", *lines]))
    return construct(kind, full)


def dump_config(config: object) -> str:
    """The configuration as YAML; ``load_config`` on it gives an equal object."""
    return yaml.safe_dump(describe(config), sort_keys=False, allow_unicode=True, width=120)


def read_yaml(path: Path) -> Data:
    """A YAML file of settings. Raises GirsanovError if it is missing, no YAML, or no mapping."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GirsanovError(f"there is no file {path}: give the path of a YAML file of settings") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise GirsanovError(f"{path} is not valid YAML{line}: write `key: value` lines") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise GirsanovError(f"{path} holds no settings: write `key: value` lines")
    return data


def parse_overrides(texts: Sequence[str]) -> Data:
    """``["train.lr=1e-3", "method=am"]`` as nested data; values are read as YAML."""
    data: Data = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            raise GirsanovError(f"{text!r} is no setting: write key=value or key.sub=value, without spaces")
        data = merge(data, nest(key.strip(), parse_value(value)))
    return data


def parse_value(text: str) -> Any:
    """A value of the command line: YAML, or the text itself where that is no YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def nest(key: str, value: Any) -> Data:
    """``a.b`` and a value as ``{a: {b: value}}``."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Data:
    """``over`` on top of ``base``, mapping by mapping; options of another ``kind`` do not survive a new one."""
    result = dict(base)
    for key, value in over.items():
        before = result.get(key)
        if isinstance(before, str) and isinstance(value, Mapping) and "kind" not in value:
            before = {"kind": before}
        if isinstance(before, Mapping) and isinstance(value, str) and before.get("kind") == value:
            continue
        if isinstance(before, Mapping) and isinstance(value, Mapping) and same_kind(before, value):
            result[key] = merge(before, value)
        else:
            result[key] = value
    return result


def same_kind(base: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    """Whether both describe the same kind of part, or one of them does not say."""
    return "kind" not in over or over["kind"] == base.get("kind")
