"""Lines of JSON, with the row in every complaint."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from girsanov.disk import write_text
from girsanov.errors import GirsanovError


def read_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers (from 1) and objects of a file; empty lines are passed over. Raises GirsanovError with the row."""
    path = Path(path)
    if not path.is_file():
        raise GirsanovError(f"there is no file {path}")
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise GirsanovError(f"{path}, row {number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise GirsanovError(f"{path}, row {number} is a {type(row).__name__}: each row is an object in braces")
            yield number, row


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
