"""Puts tables made from committed JSON into the documentation, between their markers.

python tools/tables.py            write them
python tools/tables.py --check    fail if a page is not what the JSON says
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent


def bench() -> str:
    """The bench table of the README, from ``docs/data/bench.json``."""
    rows = json.loads((ROOT / "docs/data/bench.json").read_text())["readme"]
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    lines += ["| " + " | ".join(str(row[h]) for h in head) + " |" for row in rows]
    return "\n".join(lines)


def study(part: str, section: str) -> Callable[[], str]:
    """A table of ``girsanov study stochasticity``, from ``docs/data/stochasticity-PART.json``."""

    def make() -> str:
        record = json.loads((ROOT / f"docs/data/stochasticity-{part}.json").read_text())
        table = record["sections"][section]["tables"][0]
        head, rows = table["columns"], table["rows"]
        lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([*lines, "", table["note"]])

    return make


PAPER, DEPLOYMENT = "docs/papers/sampler-stochasticity.md", "docs/deployment.md"

TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "bench": ("README.md", bench),
    "study-ve": (PAPER, study("exact", "untuned-ve")),
    "study-vp": (PAPER, study("exact", "untuned-vp")),
    "study-ddpo": (PAPER, study("digits", "ddpo")),
    "study-mix": (PAPER, study("digits", "mix-grpo")),
    "deployment-memory": (DEPLOYMENT, study("exact", "memory")),
    "deployment-exact": (DEPLOYMENT, study("exact", "tuned-exact")),
    "deployment-per-step": (DEPLOYMENT, study("exact", "per-step")),
    "deployment-networks": (DEPLOYMENT, study("networks", "networks")),
    "deployment-am": (DEPLOYMENT, study("am", "deployment-am")),
    "deployment-digits": (DEPLOYMENT, study("digits", "deployment")),
}
"""Marker -> the page it stands in, and what makes its table."""


def main(check: bool) -> int:
    """Writes (or checks) every table; the number of pages that were not up to date, when checking."""
    stale = 0
    for marker, (page, make) in TABLES.items():
        path = ROOT / page
        text = path.read_text()
        pattern = re.compile(rf"(<!-- {marker}:[^\n]*-->\n).*?(<!-- /{marker} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{page} has no marker for the table {marker!r}")
        new = pattern.sub(lambda m, make=make: f"{m[1]}{make()}\n{m[2]}", text)
        if new != text and check:
            print(f"{page}: the table {marker!r} is not what its JSON says; run python tools/tables.py")
            stale += 1
        elif new != text:
            path.write_text(new)
    return stale


if __name__ == "__main__":
    raise SystemExit(main("--check" in sys.argv[1:]))
