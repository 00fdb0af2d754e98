"""``girsanov data check | stats | convert``."""

import argparse
import json
from pathlib import Path
from typing import Any

from girsanov.data.checks import Problem, Seen, check_row
from girsanov.data.convert import convert
from girsanov.data.open import open_preferences
from girsanov.data.statistics import Statistics
from girsanov.disk import write_text
from girsanov.errors import GirsanovError

SHOWN = 20


def check_command(chosen: argparse.Namespace) -> int:
    """Every row looked at; 0 if none has an error, 1 otherwise."""
    opened, seen, found, n = open_preferences(chosen.path, chosen.layout), Seen(), list[Problem](), 0
    for n, (place, row) in enumerate(opened.rows, 1):  # noqa: B007 (the count is used below)
        if isinstance(row, GirsanovError):
            found.append(Problem(place, str(row)))
            continue
        found += check_row(row, place, opened.folder, not chosen.no_images)
        found += seen.add(row, place)
    errors = sum(p.error for p in found)
    for problem in sorted(found, key=lambda p: not p.error)[: None if chosen.all else SHOWN]:
        told = problem.what if problem.what.startswith(problem.place) else f"{problem.place}: {problem.what}"
        print(f"{'error' if problem.error else 'note'}: {told}")
    if len(found) > SHOWN and not chosen.all:
        print(f"... and {len(found) - SHOWN} more: --all shows them")
    print(f"{n} rows of the layout {opened.layout}: {errors} with an error, {len(found) - errors} notes")
    if chosen.json:
        rows = [{"place": p.place, "what": p.what, "error": p.error} for p in found]
        write_text(
            Path(chosen.json), json.dumps({"rows": n, "layout": opened.layout, "problems": rows}, indent=2) + "\n"
        )
    return 1 if errors else 0


def stats_command(chosen: argparse.Namespace) -> int:
    """Numbers of a file; bad rows are counted and left out."""
    opened, numbers, bad = open_preferences(chosen.path, chosen.layout), Statistics(), 0
    for _, row in opened.rows:
        if isinstance(row, GirsanovError):
            bad += 1
        else:
            numbers.add(row)
    data = {"layout": opened.layout, "unreadable rows": bad, **numbers.data()}
    print("\n".join(lines_of(data)))
    if chosen.json:
        write_text(Path(chosen.json), json.dumps(data, indent=2) + "\n")
    return 0


def convert_command(chosen: argparse.Namespace) -> int:
    """Rows in the schema. Raises GirsanovError without a place to write to."""
    if not chosen.out:
        raise GirsanovError("data convert writes a new file: name it with --out NAME.jsonl (or .parquet, or a folder)")
    done = convert(
        chosen.path, chosen.out, layout=chosen.layout, skip=chosen.skip, unique=chosen.unique,
        drop_flipped=chosen.drop_flipped, images=not chosen.no_images,
    )  # fmt: skip
    for problem in done.left_out[:SHOWN]:
        told = problem.what if problem.what.startswith(problem.place) else f"{problem.place}: {problem.what}"
        print(f"left out: {told}")
    if len(done.left_out) > SHOWN:
        print(f"... and {len(done.left_out) - SHOWN} more")
    extra = f", {done.resumed} of them before a break" if done.resumed else ""
    print(f"{done.read} rows of the layout {done.layout} read{extra}")
    print(
        f"{done.written} written to {chosen.out}; {done.repeated} repeated, {done.flipped} contradicting an earlier one"
    )
    return 0


def lines_of(data: dict[str, Any]) -> list[str]:
    """Numbers as lines of text: one a key, indented below it where there are several."""
    lines = []
    for key, value in data.items():
        if isinstance(value, dict):
            lines.append(key)
            lines += [f"  {name:<26} {told(number)}" for name, number in value.items()] or ["  none"]
        else:
            lines.append(f"{key:<28} {told(value)}")
    return lines


def told(value: Any) -> str:
    """A number, or the mean and range of several."""
    if isinstance(value, dict):
        return f"mean {value['mean']:.4g}, from {value['min']:g} to {value['max']:g} ({value['n']})"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


ACTIONS = {"check": check_command, "stats": stats_command, "convert": convert_command}
"""What ``girsanov data`` can do."""
