"""From any layout to the schema: row by row, resumable, in JSONL, Parquet or as a data set.

Rows go to a draft beside the target, with a note of how far the source was read; after a kill the draft is cut to what
the note covers and reading goes on from there, so the result is the same file to the byte. The target appears when all
is done. Pictures that come as bytes go to a folder beside it, named by their content.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from girsanov.data.checks import Problem, Seen, check_row
from girsanov.data.open import open_preferences
from girsanov.data.pictures import Pictures
from girsanov.data.readers import _extra
from girsanov.data.records import to_row
from girsanov.disk import full_disk, write_text
from girsanov.errors import GirsanovError

EVERY = 200
"""Rows between two notes of how far it got."""


@dataclass
class Outcome:
    """What a conversion did.

    Attributes:
        layout: of the source.
        read, written, repeated, flipped: counts of rows; ``flipped`` are those that contradict an earlier one.
        left_out: rows with an error, if these are skipped.
        resumed: rows that were there already.
    """

    layout: str = ""
    read: int = 0
    written: int = 0
    repeated: int = 0
    flipped: int = 0
    left_out: list[Problem] = field(default_factory=list)
    resumed: int = 0


def convert(
    source: str | Path,
    target: str | Path,
    *,
    layout: str | None = None,
    skip: bool = False,
    unique: bool = False,
    drop_flipped: bool = False,
    images: bool = True,
    stop_after: int | None = None,
) -> Outcome:
    """Writes the preferences of a source in the schema.

    Args:
        source: what ``open_preferences`` takes.
        target: ends in .jsonl or .parquet; anything else is a folder that ``datasets.load_from_disk`` opens.
        layout: of the source; found by its columns if not given.
        skip: leave bad rows out and say so; else the first one ends it and nothing is written.
        unique: leave repeated rows out.
        drop_flipped: leave rows out that contradict an earlier one.
        images: open every picture to see whether it can be read.
        stop_after: rows after which to break off as a kill would (for tests of resuming).

    Raises:
        GirsanovError: what opening raises, the first bad row, a target that exists, a full disk.
    """
    target = Path(target).expanduser()
    if target.exists():
        raise GirsanovError(f"{target} exists: name a new file, or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft, note = target.with_name(f".{target.name}.rows"), target.with_name(f".{target.name}.note")
    settings = [str(Path(source).resolve()), layout, skip, unique, drop_flipped]
    done = _resume(draft, note, settings)
    path = Path(source).expanduser()
    folder = path if path.is_dir() else path.parent
    pictures = Pictures(folder, target.with_name(f"{target.stem}-images"), target.parent)
    opened = open_preferences(path, layout, pictures)
    outcome, seen, left = Outcome(opened.layout, resumed=done["read"]), Seen(), done["left"]
    with full_disk(target.name), draft.open("ab") as file:
        for n, (place, found) in enumerate(opened.rows, 1):
            if n <= done["read"]:  # looked at before the break
                problems = [Problem(place, left[str(n)])] if str(n) in left else []
            elif isinstance(found, GirsanovError):
                problems = [Problem(place, str(found))]
            else:
                problems = [p for p in check_row(found, place, target.parent, images) if p.error]
            bad = _first_error(problems, place, skip, draft, note)
            outcome.read = n
            if bad is None and not isinstance(found, GirsanovError):
                if _wanted(seen.add(found, place), outcome, unique, drop_flipped):
                    outcome.written += 1
                    if n > done["read"]:
                        file.write((json.dumps(to_row(found), ensure_ascii=False) + "\n").encode())
            elif bad is not None:
                outcome.left_out.append(bad)
                left[str(n)] = bad.what
            if n > done["read"] and n % EVERY == 0:
                _note(file, note, settings, n, left)
            if stop_after is not None and n >= stop_after:
                return outcome
    WRITERS.get(target.suffix, _datasets)(draft, target)
    draft.unlink(missing_ok=True)
    note.unlink(missing_ok=True)
    return outcome


def _first_error(problems: list[Problem], place: str, skip: bool, draft: Path, note: Path) -> Problem | None:
    """The first error of a row, if these are skipped. Raises it, with nothing left behind, if they are not."""
    if not problems:
        return None
    if not skip:
        draft.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
        what = problems[0].what if problems[0].what.startswith(place) else f"{place}: {problems[0].what}"
        raise GirsanovError(f"{what} (nothing was written; --skip leaves such rows out)")
    return problems[0]


def _wanted(problems: list[Problem], outcome: Outcome, unique: bool, drop_flipped: bool) -> bool:
    """Whether a row that is fine by itself is written."""
    same = any(p.what.startswith("the same") for p in problems)
    flipped = any(p.what.startswith("contradicts") for p in problems)
    outcome.repeated += same
    outcome.flipped += flipped
    return not (same and unique) and not (flipped and drop_flipped)


def _note(file: Any, note: Path, settings: list[Any], read: int, left: dict[str, str]) -> None:
    file.flush()
    os.fsync(file.fileno())
    write_text(note, json.dumps({"settings": settings, "read": read, "left": left, "bytes": file.tell()}))


def _resume(draft: Path, note: Path, settings: list[Any]) -> dict[str, Any]:
    """How far an earlier attempt with the same settings came; cuts its draft to that. Else starts anew."""
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        if found["settings"] == settings and draft.stat().st_size >= found["bytes"]:
            with draft.open("ab") as file:
                file.truncate(found["bytes"])
            return {"read": int(found["read"]), "left": dict(found["left"])}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    draft.unlink(missing_ok=True)
    note.unlink(missing_ok=True)
    return {"read": 0, "left": {}}


# ---- targets


def _jsonl(draft: Path, target: Path) -> None:
    os.replace(draft, target)


def table_rows(draft: Path) -> Iterator[dict[str, Any]]:
    """Rows with every column of the schema, for tables: conversations and meta as JSON text, scores as a list."""
    with draft.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            items = row.get("items") or [row["chosen"] | {"rank": 1}, row["rejected"] | {"rank": 2}]
            prompt = row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"], ensure_ascii=False)
            yield {
                "prompt": prompt,
                "conversation": not isinstance(row["prompt"], str),
                "items": [
                    {**{k: item.get(k) for k in ("text", "image", "score", "rank", "label", "model")},
                     **{k: json.dumps(item.get(k, empty)) for k, empty in (("scores", {}), ("segments", []))}}
                    for item in items
                ],
                "split": row.get("split", "train"),
                "source": row.get("source", ""),
                "id": row.get("id", ""),
                "meta": json.dumps(row.get("meta", {}), ensure_ascii=False),
            }  # fmt: skip


def _schema() -> Any:
    pa = _extra("pyarrow", "pyarrow")
    text, item = pa.string(), [("text", pa.string()), ("image", pa.string()), ("score", pa.float64())]
    item += [("rank", pa.int64()), ("label", pa.bool_()), ("model", text), ("scores", text), ("segments", text)]
    columns = [("prompt", text), ("conversation", pa.bool_()), ("items", pa.list_(pa.struct(item)))]
    return pa.schema([*columns, ("split", text), ("source", text), ("id", text), ("meta", text)])


def _parquet(draft: Path, target: Path) -> None:
    pa, parquet, schema = _extra("pyarrow", "pyarrow"), _extra("pyarrow.parquet", "pyarrow"), _schema()
    half = target.with_name(f".{target.name}.tmp")
    with full_disk(target.name), parquet.ParquetWriter(half, schema) as writer:
        for some in _chunks(table_rows(draft), 1000):
            writer.write_table(pa.Table.from_pylist(some, schema=schema))
    os.replace(half, target)


def _datasets(draft: Path, target: Path) -> None:
    datasets, half = _extra("datasets", "datasets"), target.with_name(f".{target.name}.parquet")
    _parquet(draft, half)
    data = datasets.Dataset.from_parquet(str(half), cache_dir=str(half.with_suffix(".cache")))
    splits = sorted(set(data["split"]))
    parts = {s: data.filter(lambda row, s=s: row["split"] == s, keep_in_memory=True) for s in splits}
    datasets.DatasetDict(parts).save_to_disk(str(target))
    half.unlink()
    import shutil

    shutil.rmtree(half.with_suffix(".cache"), ignore_errors=True)


def _chunks(rows: Iterator[dict[str, Any]], n: int) -> Iterator[list[dict[str, Any]]]:
    some: list[dict[str, Any]] = []
    for row in rows:
        some.append(row)
        if len(some) == n:
            yield some
            some = []
    if some:
        yield some


WRITERS: dict[str, Callable[[Path, Path], None]] = {".jsonl": _jsonl, ".parquet": _parquet}
"""How a target is written, by its ending; a folder is a saved data set."""
