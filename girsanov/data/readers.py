"""Rows of any file, one at a time: nothing is read whole.

``rows(path)`` yields ``(place, object)``; the place ("data.jsonl, row 7") is what errors start with. JSONL and CSV are
read line by line, Parquet by groups of rows, data sets written by ``datasets`` memory-mapped; a ``.json`` file is one
list and is read whole. A folder is its Parquet or JSONL files in the order of their names, or a saved data set.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from girsanov.errors import GirsanovError
from girsanov.jsonl import an_object, parsed, read_rows

Row = tuple[str, dict[str, Any]]
BATCH = 256
"""Rows of a table held at a time."""


def rows(path: str | Path) -> Iterator[Row]:
    """Every row with its place. Raises GirsanovError on a missing or unreadable file, or row."""
    path = Path(path).expanduser()
    if path.is_dir():
        yield from _folder(path)
        return
    if not path.is_file():
        raise GirsanovError(f"there is no file {path}")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise GirsanovError(f"{path} is of no kind that is read here: {', '.join(READERS)}, or a folder of them")
    try:
        yield from reader(path)
    except UnicodeDecodeError:
        raise GirsanovError(f"{path} is no text in UTF-8: is it what its ending says?") from None


def _jsonl(path: Path) -> Iterator[Row]:
    for n, row in read_rows(path):
        yield f"{path.name}, row {n}", row


def _json(path: Path) -> Iterator[Row]:
    data = parsed(path.read_text(encoding="utf-8"), path.name)
    if not isinstance(data, list):
        raise GirsanovError(f"{path} must hold a list of rows, not one {type(data).__name__}")
    for n, value in enumerate(data, 1):
        place = f"{path.name}, row {n}"
        yield place, an_object(value, place)


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(1 << 28)
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            for n, row in enumerate(reader, 1):
                place = f"{path.name}, row {n}"
                if None in row or None in row.values():
                    raise GirsanovError(f"{place} has another number of cells than the header: mend or leave it out")
                yield place, {str(k): v for k, v in row.items()}
        except csv.Error as error:
            raise GirsanovError(f"{path}: {error} near row {reader.line_num}") from None


def _parquet(path: Path) -> Iterator[Row]:
    parquet = _extra("pyarrow.parquet", "pyarrow")
    try:
        file = parquet.ParquetFile(path)
    except Exception as error:
        raise GirsanovError(f"{path} is no readable Parquet file: {str(error).splitlines()[0]}") from None
    n = 0
    with file:
        for batch in file.iter_batches(BATCH):
            for row in batch.to_pylist():
                n += 1
                yield f"{path.name}, row {n}", row


def _folder(path: Path) -> Iterator[Row]:
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        yield from _saved(path)
        return
    found = sorted([*path.rglob("*.parquet"), *path.rglob("*.jsonl")])
    if not found:
        raise GirsanovError(f"{path} holds no .parquet or .jsonl files, and is no saved data set")
    for file in found:
        yield from READERS[file.suffix](file)


def _saved(path: Path) -> Iterator[Row]:
    datasets = _extra("datasets", "datasets")
    data = datasets.load_from_disk(str(path))
    parts = data.items() if isinstance(data, dict) else [("", data)]
    for split, part in parts:
        raw = part.with_format(None)
        for column, kind in part.features.items():
            if type(kind).__name__ == "Image":  # bytes and path as they are stored: nothing is decoded
                raw = raw.cast_column(column, datasets.Image(decode=False))
        for n, row in enumerate(raw, 1):
            place = f"{path.name}{'/' + split if split else ''}, row {n}"
            yield place, dict(row) | ({"split": split} if split and "split" not in row else {})


READERS = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
"""File endings that are read."""


def _extra(module: str, package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise GirsanovError(f"this needs the package {package}: pip install 'girsanov[data]'") from None
