"""Preferences of any file or folder: layout found, rows parsed, one at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from girsanov.data.layouts import Parsed
from girsanov.data.pictures import Pictures
from girsanov.data.readers import rows
from girsanov.data.records import Preference
from girsanov.data.text_layouts import LAYOUTS, layout_of
from girsanov.errors import GirsanovError
from girsanov.settings import unknown


@dataclass(frozen=True)
class Opened:
    """A data set that is about to be read.

    Attributes:
        layout: its layout.
        rows: (place, preference or what is wrong with the row), lazily.
        folder: what paths of pictures are relative to.
    """

    layout: str
    rows: Parsed
    folder: Path


def open_preferences(path: str | Path, layout: str | None = None, pictures: Pictures | None = None) -> Opened:
    """Opens a file or folder of preferences.

    Args:
        path: JSONL, JSON, CSV, Parquet, a folder of JSONL or Parquet files, or a saved data set.
        layout: its layout; found by the columns of the first row if not given.
        pictures: where pictures are and go; those in the file's folder by default.

    Raises:
        GirsanovError: a missing, empty or unreadable file, an unknown layout.
    """
    path = Path(path).expanduser()
    folder = path if path.is_dir() else path.parent
    stream = rows(path)
    first = next(stream, None)
    if first is None:
        raise GirsanovError(f"{path} has no rows")
    if layout is not None and layout not in LAYOUTS:
        raise GirsanovError(f"{layout!r} {unknown(layout, LAYOUTS, 'layout')}")
    name = layout or layout_of(first[1], first[0])
    return Opened(name, LAYOUTS[name].read(chain([first], stream), pictures or Pictures(folder)), folder)


def read_preferences(path: str | Path, layout: str | None = None) -> Iterator[Preference]:
    """The preferences of a file, one at a time. Raises GirsanovError at the first bad row."""
    for _, found in open_preferences(path, layout).rows:
        if isinstance(found, GirsanovError):
            raise found
        yield found
