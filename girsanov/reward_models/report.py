"""The page of a reward model: its numbers on held-out comparisons, and how they came about."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup

from girsanov.disk import write_text
from girsanov.evaluation.calibration import Calibration
from girsanov.report.run import render
from girsanov.report.svg import Line, chart, legend
from girsanov.reward_models.gated import Gated
from girsanov.reward_models.model import RewardModel
from girsanov.reward_models.objectives import Objective
from girsanov.reward_models.sources import Source
from girsanov.reward_models.training import Measured
from girsanov.train import Run


class Curve:
    """A callback that keeps the loss of every iteration."""

    def __init__(self) -> None:
        self.loss: list[float] = []

    def start(self, run: Run) -> None:
        """Nothing."""

    def iteration(self, run: Run, metrics: dict[str, float]) -> None:
        """One more point."""
        self.loss.append(metrics["loss"])

    def end(self, run: Run) -> None:
        """Nothing."""

    def smooth(self) -> list[float]:
        """Means over the last tenth of the iterations up to each."""
        width = max(1, len(self.loss) // 10)
        parts = [self.loss[max(0, i - width + 1) : i + 1] for i in range(len(self.loss))]
        return [sum(part) / len(part) for part in parts]


@torch.no_grad()
def gate_weights(model: RewardModel, source: Source) -> tuple[Objective, ...]:
    """The objectives with the mean weight that the gate gives each on held-out prompts; none without a gate."""
    gates = [m for m in model.net.modules() if isinstance(m, Gated)]
    if not gates or source.test.cond is None:
        return ()
    device = next(model.net.parameters()).device
    prompts = source.test.cond["prompt"].to(device)
    mean = torch.stack([g.weights(prompts) for g in gates]).mean((0, 1)).tolist()
    return tuple(dataclasses.replace(o, weight=w) for o, w in zip(source.objectives, mean, strict=True))


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
    folder: Path,
    model: RewardModel,
    source: Source,
    found: tuple[Measured, Measured],
    curve: Curve,
    command: str,
    objectives: Sequence[Objective] = (),
) -> Path:
    """``report.html`` of a reward model."""
    steps = list(range(1, len(curve.loss) + 1))
    loss = [Line(steps, curve.loss, name="each update", style="line-grey"), Line(steps, curve.smooth(), name="mean")]
    plots = [
        reliability(found[1].pairs),
        {"title": "Loss in training", "lines": loss, "x": "iteration", "percent": False},
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
        objectives=objectives,
        debiased=any(o.lam is not None for o in objectives),
        folder=str(folder),
    )
    path = folder / "report.html"
    write_text(path, page)
    return path
