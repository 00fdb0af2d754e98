"""NOTATION.md tells the truth: every code name in its tables occurs in the file that the row names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (ROOT / "NOTATION.md").read_text().splitlines()
    if line.startswith("| `")
]


def test_the_tables_are_there() -> None:
    assert len(ROWS) > 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_symbol_is_in_its_file(row: list[str]) -> None:
    names = re.findall(r"`([^`]+)`", row[1])
    path = ROOT / re.findall(r"`([^`]+)`", row[-1])[0]
    assert path.exists(), f"{path.name} is gone: correct the row of {row[0]}"
    text = path.read_text()
    for name in names:
        assert re.search(rf"\b{re.escape(name)}\b", text), f"{name} does not occur in {path.name}"
