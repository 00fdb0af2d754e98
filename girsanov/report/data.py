"""What a report is made of: a run folder, read."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from girsanov.folder import RunFolder
from girsanov.report.svg import rounded

Z = 1.96  # half-width of a 95 % interval, in standard errors


@dataclass(frozen=True)
class Shown:
    """A metric as a report shows it: before, after, whether that is good.

    Attributes:
        key, label, better, percent: as in ``recipes.base.Metric``.
        before, after: values of the first and the last evaluation, None if there is none.
        before_error, after_error: half-widths of their 95 % intervals.
    """

    key: str
    label: str
    better: str | None
    percent: bool
    before: float | None
    after: float | None
    before_error: float
    after_error: float

    @property
    def gain(self) -> float:
        """How far it went the good way (up, if neither way is good)."""
        if self.before is None or self.after is None:
            return 0.0
        return (self.after - self.before) * (-1 if self.better == "low" else 1)

    @property
    def noise(self) -> float:
        """Half-width of the 95 % interval of the difference."""
        return math.hypot(self.before_error, self.after_error)

    @property
    def trend(self) -> str:
        """ "better", "worse", "moved" or "same", beyond noise."""
        if abs(self.gain) <= self.noise:
            return "same"
        if self.better is None:
            return "moved"
        return "better" if self.gain > 0 else "worse"

    def text(self, which: str) -> str:
        """The value "before" or "after", with its interval."""
        value = getattr(self, which)
        if value is None:
            return "–"
        return rounded(value, max(self.before_error, self.after_error), self.percent)[0]

    def interval(self, which: str) -> str:
        """``± half-width``, if it is known."""
        value, error = getattr(self, which), getattr(self, f"{which}_error")
        if not error or value is None:
            return ""
        return f"± {rounded(error, max(self.before_error, self.after_error), self.percent)[0]}"


@dataclass(frozen=True)
class RunData:
    """A run folder in memory.

    Attributes:
        name: of the folder.
        facts: ``run.json``; about: ``about.json``; versions: ``versions.json``.
        config: the text of ``config.yaml``.
        iterations, evaluations, alarms: the lines of ``metrics.jsonl`` by kind.
        metrics: the evaluated numbers, before and after.
    """

    name: str
    facts: dict[str, Any]
    about: dict[str, Any]
    versions: dict[str, Any]
    config: str
    iterations: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    alarms: list[dict[str, Any]]
    metrics: list[Shown]

    @classmethod
    def read(cls, folder: RunFolder) -> "RunData":
        """Reads a run folder. Raises GirsanovError if it is none."""
        folder = RunFolder.open(folder.path)
        about = read_json(folder.path / "about.json")
        evaluations = folder.records("evaluation")
        return cls(
            folder.path.name,
            folder.facts,
            about,
            read_json(folder.path / "versions.json"),
            (folder.path / "config.yaml").read_text(encoding="utf-8"),
            folder.records(),
            evaluations,
            folder.records("alarm"),
            [shown(m, evaluations) for m in about.get("metrics", [])],
        )

    @property
    def done(self) -> int:
        """Iterations finished."""
        return max((r["iteration"] for r in self.iterations), default=0)

    @property
    def total(self) -> int:
        """Iterations configured."""
        return int(self.about.get("iterations", 0))

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.about.get("method", ""))

    def metric(self, key: str) -> Shown | None:
        """An evaluated number by its key."""
        return next((m for m in self.metrics if m.key == key), None)

    def speeds(self) -> dict[str, float]:
        """Medians over the iterations of what was measured of the run's speed; the first one, which warms up, apart."""
        measured = self.iterations[1:] or self.iterations
        names = {key.removeprefix("speed/") for record in measured for key in record if key.startswith("speed/")}
        series = {n: [r[f"speed/{n}"] for r in measured if r.get(f"speed/{n}") is not None] for n in names}
        found = {name: median(values) for name, values in series.items() if values}
        peaks = [r["speed/peak_mb"] for r in self.iterations if r.get("speed/peak_mb") is not None]
        return found | ({"peak_mb": max(peaks)} if peaks else {})

    def phases(self) -> dict[str, float]:
        """Seconds spent in each phase."""
        seconds: dict[str, float] = {}
        for record in [*self.iterations, *self.evaluations]:
            for key, value in record.items():
                if key.startswith("time/") and value is not None:
                    name = key.removeprefix("time/")
                    seconds[name] = seconds.get(name, 0.0) + value
        return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def shown(metric: dict[str, Any], evaluations: list[dict[str, Any]]) -> Shown:
    """A metric with its first and its last evaluation."""
    key = metric["key"]
    first = evaluations[0] if evaluations else {}
    last = evaluations[-1] if len(evaluations) > 1 else {}
    return Shown(
        key,
        metric["label"],
        metric["better"],
        metric["percent"],
        first.get(key),
        last.get(key),
        Z * (first.get(f"{key}_se") or 0.0),
        Z * (last.get(f"{key}_se") or 0.0),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if the file is missing or none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
