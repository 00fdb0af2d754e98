"""Lines of JSON, with the row in every complaint."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from girsanov.disk import write_text
from girsanov.errors import GirsanovError


def read_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers (from 1) and objects of a file; empty lines are passed over. Raises GirsanovError with the row."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise GirsanovError(f"there is no file {path}")
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    place = f"{path.name}, row {number}"
                    yield number, an_object(parsed(line, place), place)
    except UnicodeDecodeError:
        raise GirsanovError(f"{path} is no text in UTF-8: is it what its ending says?") from None


def parsed(text: str, place: str) -> Any:
    """What a text in JSON holds. Raises GirsanovError with the place."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise GirsanovError(f"{place} is no JSON: {error}") from None


def an_object(value: Any, place: str) -> dict[str, Any]:
    """The value, if it is an object. Raises GirsanovError with the place."""
    if not isinstance(value, dict):
        raise GirsanovError(f"{place} must be an object, not {type(value).__name__}")
    return value


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one object a line, at once."""
    write_text(Path(path), "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows))


def field(row: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A field of a row. Raises GirsanovError with the place if it is missing or of another kind."""
    if name not in row:
        raise GirsanovError(f"{where} has no {name!r}: it has {', '.join(map(repr, row)) or 'nothing'}")
    if not isinstance(row[name], kind) or isinstance(row[name], bool):
        words = "text" if kind is str else "a number"
        raise GirsanovError(f"{where}: {name!r} is {row[name]!r}, not {words}")
    return row[name]
