"""The report of a run: one HTML file that needs nothing else, made from the run folder alone."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from girsanov.disk import write_text
from girsanov.folder import RunFolder
from girsanov.report.data import RunData, Shown, Z, read_json
from girsanov.report.svg import Line, chart, legend
from girsanov.report.verdict import verdict

HERE = Path(__file__).parent
STRIP = 8  # pictures of a run over time
STYLES = ("line-a", "line-b", "line-c", "line-d", "line-e", "line-grey")
PHASES = {
    "rollout": "sampling: network passes without a gradient",
    "decode": "decoding samples for the reward",
    "reward": "waiting for scores, and for their gradients",
    "collect": "the rest of a batch: adjoints, references, advantages",
    "anchor": "scoring before the first of several updates",
    "loss": "forward and backward passes of the loss",
    "update": "optimiser",
    "evaluate": "evaluations between iterations",
}


@dataclass(frozen=True)
class Chart:
    """A titled chart."""

    title: str
    svg: Markup
    legend: Markup


def render(template: str, **values: Any) -> str:
    """A page from a template of this folder, with the style sheet inside."""
    pages = Environment(
        loader=FileSystemLoader(HERE), autoescape=select_autoescape(), undefined=StrictUndefined, trim_blocks=True
    )
    style = Markup((HERE / "style.css").read_text(encoding="utf-8"))  # noqa: S704 (our own file)
    return pages.get_template(template).render(style=style, **values)


def write_report(folder: RunFolder) -> Path:
    """Writes ``report.html`` into a run folder; its path."""
    run = RunData.read(folder)
    page = render(
        "run.html",
        run=run,
        verdict=verdict(run),
        pictures=[] if texts(folder) else pictures(folder),
        texts=texts(folder),
        strip=[] if texts(folder) else strip(folder),
        charts=charts(run),
        more=[metric_chart(run, m) for m in run.metrics if m.key not in HEADLINES],
        drawings=drawings(folder),
        phases=phases(run),
        speeds=speeds(run),
    )
    path = folder.path / "report.html"
    write_text(path, page)
    return path


def pictures(folder: RunFolder) -> list[dict[str, str]]:
    """The pictures before and after, as base64."""
    usual = ["the pretrained model", "the tuned model"]
    before, after = read_json(folder.path / "about.json").get("captions", usual)
    captions = {"before": f"Before: {before}", "after": f"After: {after}"}
    found = [(name, folder.samples / f"{name}.png") for name in captions]
    return [
        {"name": name, "caption": captions[name], "data": base64.b64encode(path.read_bytes()).decode()}
        for name, path in found
        if path.is_file()
    ]


def strip(folder: RunFolder) -> list[dict[str, Any]]:
    """The pictures drawn during the run, as base64: at most eight, evenly spread, with first and last."""
    found = sorted(folder.samples.glob("[0-9]*.png"))
    if len(found) < 2:
        return []
    last = len(found) - 1
    chosen = sorted({round(i * last / (STRIP - 1)) for i in range(STRIP)}) if last >= STRIP else range(last + 1)
    return [{"iteration": int(found[i].stem), "data": base64.b64encode(found[i].read_bytes()).decode()} for i in chosen]


def texts(folder: RunFolder) -> list[dict[str, str]]:
    """Prompts with their completions before and after, where samples are read."""
    before, after = (read_json(folder.samples / f"{name}.json").get("texts", []) for name in ("before", "after"))
    return [
        {"prompt": prompt, "before": first, "after": second}
        for (prompt, first), (_, second) in zip(before, after, strict=False)
    ]


@dataclass(frozen=True)
class Drawn:
    """A chart with a sentence below it."""

    chart: Chart
    note: str


def drawings(folder: RunFolder) -> list[Drawn]:
    """What the run has learned beside the exact answer, from ``drawings.json``."""
    found = read_json(folder.path / "drawings.json").get("drawings", [])
    return [
        Drawn(plot(d["title"], [Line(**line) for line in d["lines"]], x_label=d["x_label"]), d["note"]) for d in found
    ]


def charts(run: RunData) -> list[Chart]:
    """The evaluated numbers, the reward against the KL, the loss."""
    made = [metric_chart(run, m) for m in run.metrics if m.key in HEADLINES]
    kl, reward = run.metric("kl"), run.metric("reward")
    if kl is not None and reward is not None:
        path = [(e.get("kl"), e.get("reward")) for e in run.evaluations]
        points = [(k, r) for k, r in path if k is not None and r is not None]
        line = Line([k for k, _ in points], [r for _, r in points], name="this run", dots=True)
        farthest = max((k for k, _ in points), default=0.0)
        best = [(k, r) for k, r in run.about.get("frontier", []) if k <= 1.1 * farthest]
        bound = Line([k for k, _ in best], [r for _, r in best], name="best possible", style="line-grey")
        lines = [bound, line] if best else [line]
        made.append(plot(f"{reward.label} against {kl.label}", lines, reward.percent, "KL"))
    losses = Line([r["iteration"] for r in run.iterations], [r.get("loss") for r in run.iterations], style="line-grey")
    made.append(plot("Loss", [losses]))
    return [*made, *diagnostics(run)]


DIAGNOSTICS = {
    "martingale_z": "Martingale test of the value: z (small for a true one)",
    "value_explained": "Share of returns that the value explains",
    "trust_distance": "Trust region: root of the KL between rollouts",
}
"""Metrics of an iteration that some methods log, with a chart of their own."""


def diagnostics(run: RunData) -> list[Chart]:
    """What the method says of its own parts, iteration by iteration."""
    at = [r["iteration"] for r in run.iterations]
    logged = [(key, title) for key, title in DIAGNOSTICS.items() if any(key in r for r in run.iterations)]
    return [plot(title, [Line(at, [r.get(key) for r in run.iterations])]) for key, title in logged]


def metric_chart(run: RunData, metric: Shown) -> Chart:
    """An evaluated number over the iterations, with training batches behind it where they log the same."""
    points = [e for e in run.evaluations if e.get(metric.key) is not None]
    evaluated = Line(
        [e["iteration"] for e in points],
        [e[metric.key] for e in points],
        [Z * (e.get(f"{metric.key}_se") or 0.0) for e in points],
        "evaluation",
        dots=True,
    )
    lines = [evaluated]
    if metric.key == "reward":
        batches = [(r["iteration"], r.get("reward")) for r in run.iterations]
        lines.insert(0, Line([i for i, _ in batches], [v for _, v in batches], name="training", style="line-grey"))
    return plot(metric.label, lines, metric.percent)


HEADLINES = ("reward", "judge", "diversity", "kl")  # keys with a place of their own


def plot(title: str, lines: list[Line], percent: bool = False, x_label: str = "iteration") -> Chart:
    """A chart as the template takes it."""
    return Chart(title, Markup(chart(lines, title, x_label, percent)), Markup(legend(lines)))  # noqa: S704 (escaped)


def plain(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def percent(value: float) -> str:
    """A share in percent."""
    return f"{100 * value:.1f} %"


SPEEDS: dict[str, tuple[str, Callable[[float], str], str]] = {
    "samples": ("samples a second", plain, "over all processes and whole iterations"),
    "mfu": ("MFU", percent, "of what the device could have done, in the network's own passes"),
    "mfu_loss": ("MFU of the training passes", percent, "forward and backward passes of the loss alone"),
    "peak_mb": (
        "peak memory",
        lambda value: f"{value:.0f} MiB",
        "allocated on a GPU, resident in the process elsewhere",
    ),
    "reward_work": (
        "reward at work",
        lambda value: f"{plain(value)} s an iteration",
        "waited for or not; the phase above is the waiting",
    ),
}
"""What is measured of a run's speed: name, how it is written, what it means."""


def speeds(run: RunData) -> list[dict[str, str]]:
    """The run's speed: the median iteration, and the peak of the memory."""
    found = run.speeds()
    return [
        {"name": name, "value": written(found[key]), "meaning": meaning}
        for key, (name, written, meaning) in SPEEDS.items()
        if key in found
    ]


def phases(run: RunData) -> list[dict[str, Any]]:
    """Seconds, share and colour of each phase."""
    seconds = run.phases()
    total = sum(seconds.values())
    return [
        {
            "name": name,
            "seconds": s,
            "share": 100 * s / total if total else 0.0,
            "style": STYLES[min(i, len(STYLES) - 1)],
            "meaning": PHASES.get(name, ""),
        }
        for i, (name, s) in enumerate(seconds.items())
    ]
