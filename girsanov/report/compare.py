"""Runs side by side: a table for the terminal, a page, and JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from markupsafe import Markup
from scipy.special import stdtrit

from girsanov.disk import write_text
from girsanov.errors import GirsanovError
from girsanov.folder import RunFolder
from girsanov.report.data import RunData, Shown
from girsanov.report.run import SPEEDS, STYLES, Chart, pictures, plot, render
from girsanov.report.svg import Line, legend, rounded

SPEED_COLUMNS = ("samples", "mfu", "peak_mb")


@dataclass(frozen=True)
class Entry:
    """A run, or the same run with several seeds."""

    name: str
    runs: list[RunData]
    pictures: list[dict[str, str]]

    def metric(self, key: str) -> Shown | None:
        """The metric's description, as the first run has it."""
        return self.runs[0].metric(key)

    def values(self, key: str, which: str = "after") -> list[float]:
        """The metric's values over the seeds."""
        found = [run.metric(key) for run in self.runs]
        values = [getattr(m, which) for m in found if m is not None]
        return [v for v in values if v is not None]

    def speeds(self) -> dict[str, float | None]:
        """Samples a second, MFU and peak memory (MiB): means over the seeds, None where it was not measured."""
        found = [run.speeds() for run in self.runs]
        series = {key: [s[key] for s in found if key in s] for key in SPEED_COLUMNS}
        return {key: mean(values) if values else None for key, values in series.items()}

    def speed(self, key: str) -> str:
        """One of them as text."""
        value = self.speeds()[key]
        return "–" if value is None else SPEEDS[key][1](value)

    def text(self, key: str, which: str = "after") -> str:
        """The mean over seeds with its 95 % interval (Student's t), or one run's value with its own interval.

        Seeds that end in the same number (all untrained models do) say nothing of the spread: the run's own is shown.
        """
        values, metric = self.values(key, which), self.metric(key)
        if not values or metric is None:
            return "–"
        if len(set(values)) == 1:
            return f"{metric.text(which)} {metric.interval(which)}".strip()
        half = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / math.sqrt(len(values))
        return " ± ".join(rounded(mean(values), half, metric.percent))


def read_entry(path: Path) -> Entry:
    """A run folder, or a folder of runs repeated with several seeds. Raises GirsanovError if it is neither."""
    if (path / "group.json").is_file():
        folders = [RunFolder.open(p) for p in sorted(path.glob("seed-*")) if (p / "run.json").is_file()]
        if not folders:
            raise GirsanovError(f"{path} holds no runs any more: repeat it with --seeds")
    else:
        folders = [RunFolder.open(path)]
    return Entry(path.name, [RunData.read(f) for f in folders], pictures(folders[0]))


def write_comparison(paths: Sequence[Path], out: Path, json_path: Path | None = None) -> str:
    """Writes the page, and the numbers as JSON if asked; returns the table as text.

    Raises:
        GirsanovError: a folder that is no run.
    """
    entries = [read_entry(p) for p in paths]
    metrics = {m.key: m for e in entries for m in e.runs[0].metrics}
    page = render(
        "compare.html",
        entries=entries,
        metrics=list(metrics.values()),
        charts=[comparison_chart(entries, m) for m in metrics.values()],
        seconds=[mean(sum(run.phases().values()) for run in e.runs) for e in entries],
        styles=STYLES,
        speeds={key: SPEEDS[key][0] for key in measured_speeds(entries)},
    )
    write_text(out, page)
    if json_path is not None:
        write_text(json_path, json.dumps({"runs": [record(e) for e in entries]}, indent=1) + "\n")
    return table(entries, list(metrics.values()))


def record(entry: Entry) -> dict[str, Any]:
    """A run's numbers: values of each metric by seed, before and after, and both as text with their intervals."""
    first = entry.runs[0]
    metrics = {
        m.key: {
            "label": m.label,
            "before": entry.values(m.key, "before"),
            "after": entry.values(m.key),
            "before_text": entry.text(m.key, "before"),
            "after_text": entry.text(m.key),
        }
        for m in first.metrics
    }
    return {
        "name": entry.name,
        "recipe": first.facts.get("recipe"),
        "method": first.method,
        "config": first.config,
        "seeds": [run.about.get("seed") for run in entry.runs],
        "iterations": first.done,
        "seconds": round(mean(sum(run.phases().values()) for run in entry.runs), 1),
        "speeds": {key: value for key, value in entry.speeds().items() if value is not None},
        "alarms": [a["alarm"] for run in entry.runs for a in run.alarms],
        "metrics": metrics,
    }


def table(entries: Sequence[Entry], metrics: Sequence[Shown]) -> str:
    """The last evaluations as aligned columns, a row a run."""
    measured = measured_speeds(entries)
    speeds = [SPEEDS[key][0] for key in measured]
    head = ["run", "method", "seeds", "iterations", *(m.label for m in metrics), "alarms", *speeds]
    rows = [
        [
            e.name,
            e.runs[0].method,
            str(len(e.runs)),
            str(e.runs[0].done),
            *(e.text(m.key) for m in metrics),
            str(sum(len(run.alarms) for run in e.runs)),
            *(e.speed(key) for key in measured),
        ]
        for e in entries
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [head, *rows])


def measured_speeds(entries: Sequence[Entry]) -> list[str]:
    """The speeds that any of the runs has."""
    return [key for key in SPEED_COLUMNS if any(e.speeds()[key] is not None for e in entries)]


def comparison_chart(entries: Sequence[Entry], metric: Shown) -> Chart:
    """One line a run (the mean over its seeds) over the iterations."""
    lines = []
    for i, entry in enumerate(entries):
        series: dict[int, list[float]] = {}
        for run in entry.runs:
            for e in run.evaluations:
                if e.get(metric.key) is not None:
                    series.setdefault(e["iteration"], []).append(e[metric.key])
        xs = sorted(series)
        lines.append(
            Line(xs, [mean(series[x]) for x in xs], name=entry.name, style=STYLES[min(i, len(STYLES) - 1)], dots=True)
        )
    made = plot(metric.label, lines, metric.percent)
    return Chart(made.title, made.svg, Markup(legend(lines)))  # noqa: S704 (escaped)
