"""``girsanov train-reward``: train, measure on held-out comparisons, save, and write a page."""

import argparse
import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from girsanov.data.rankings import told
from girsanov.disk import write_text
from girsanov.evaluation.calibration import Calibration
from girsanov.folder import clean
from girsanov.report.run import render
from girsanov.report.svg import Line, chart, legend
from girsanov.reward_models.losses import reward_loss
from girsanov.reward_models.model import RewardModel
from girsanov.reward_models.sources import Source, digits_source, file_source
from girsanov.reward_models.training import Measured, measure, train_reward_model
from girsanov.train import Run, TrainConfig


class Curve:
    """A callback that keeps the loss and the accuracy of every iteration."""

    def __init__(self) -> None:
        self.loss: list[float] = []
        self.accuracy: list[float] = []

    def start(self, run: Run) -> None:
        """Nothing."""

    def iteration(self, run: Run, metrics: dict[str, float]) -> None:
        """One more point."""
        self.loss.append(metrics["loss"])
        self.accuracy.append(metrics["accuracy"])

    def end(self, run: Run) -> None:
        """Nothing."""


def source_of(chosen: argparse.Namespace) -> Source:
    """The comparisons that the command line asks for."""
    options = {"batch_size": chosen.batch, "members": chosen.members, "seed": chosen.seed}
    if chosen.data != "digits":
        return file_source(chosen.data, held_out=chosen.held_out, limit=chosen.limit, size=chosen.size, **options)
    from girsanov.rewards import load_reward

    return digits_source(
        load_reward(chosen.annotator),
        items=chosen.items,
        n=chosen.limit or 2000,
        temperature=chosen.temperature,
        **options,
    )


def train_reward(chosen: argparse.Namespace, command: str) -> str:
    """Trains as the command line says; what to print."""
    loss, source, curve = reward_loss(chosen.loss), source_of(chosen), Curve()
    train = TrainConfig(iterations=chosen.iterations, lr=chosen.lr, weight_decay=chosen.weight_decay, seed=chosen.seed)
    model = train_reward_model(source.config, source.train, loss, train=train, callbacks=[curve])
    seen, held_out = measure(model, source.train), measure(model, source.test)
    model.notes = clean({"data": source.about, "loss": chosen.loss, "command": command, "held_out": held_out.data()})
    folder = model.save(chosen.out)
    page = write_page(folder, model, source, (seen, held_out), curve, command)
    write_text(folder / "evaluation.json", json.dumps(model.notes, indent=2) + "\n")
    lines = [*told(source.left_out), source.about, f"held out: {len(source.test)} comparisons"]
    width = max(len(k) for k in held_out.rows())
    lines += [f"  {k:<{width}}  {v}" for k, v in held_out.rows().items()]
    lines.append(f"  {'accuracy in training':<{width}}  {seen.pairs.accuracy}")
    use = f"use it as reward={{kind: trained, path: {chosen.out}}}"
    return "\n".join([*lines, f"saved in {folder}; {use}", f"report: {page}"])


def reliability(found: Calibration) -> dict[str, Any]:
    """The reliability diagram as the template takes it."""
    sure = [b.confidence for b in found.bins]
    right = [b.accuracy.value for b in found.bins]
    half = [(b.accuracy.high - b.accuracy.low) / 2 for b in found.bins]
    lines = [
        Line([0.5, 1.0], [0.5, 1.0], name="exact", style="line-grey"),
        Line(sure, right, half, "held out", dots=True),
    ]
    return {"title": "Share in the right order, by confidence", "lines": lines, "x": "confidence", "percent": True}


def write_page(
    folder: Path, model: RewardModel, source: Source, found: tuple[Measured, Measured], curve: Curve, command: str
) -> Path:
    """``report.html`` of a reward model."""
    steps = list(range(1, len(curve.loss) + 1))
    plots = [
        reliability(found[1].pairs),
        {"title": "Loss in training", "lines": [Line(steps, curve.loss)], "x": "iteration", "percent": False},
    ]
    charts = [
        {
            "title": p["title"],
            "svg": Markup(chart(p["lines"], p["title"], p["x"], p["percent"])),  # noqa: S704 (escaped)
            "legend": Markup(legend(p["lines"])),  # noqa: S704 (escaped)
        }
        for p in plots
    ]
    seen, held_out = (f.rows() for f in found)
    rows = [(k, held_out[k], seen.get(k, "")) for k in held_out]
    page = render(
        "reward.html",
        name=folder.name,
        about=source.about,
        rows=rows,
        charts=charts,
        counts=(len(source.train), len(source.test)),
        accuracy=found[1].pairs.accuracy,
        command=command,
        left_out=source.left_out,
        folder=str(folder),
    )
    path = folder / "report.html"
    write_text(path, page)
    return path
