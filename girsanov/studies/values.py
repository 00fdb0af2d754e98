r"""``girsanov study values``: which value network learns a value, and its gradient, from how many paths.

Part ``exact``: the error of V and of grad V where both are known (``values_exact.py``). Part ``digits``: the gradient
form on digits with each skip, at equal iterations.

Reference: arXiv:2502.01819, 2025 (their ablation of skips).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from girsanov.launch import configure
from girsanov.nets.skip import SKIPS
from girsanov.recipes import get_recipe
from girsanov.report.svg import Line
from girsanov.studies.digits import evaluator_of
from girsanov.studies.page import TONES, Plot, Section, Table, study_of, write_study
from girsanov.studies.values_exact import PROBLEMS, exact_section
from girsanov.train import Run, train


@dataclass
class Curve:
    """Evaluated reward and KL, and the diagnosis of the value, along a run.

    Attributes:
        evaluate: of the recipe.
        every: iterations between evaluations.
        at, reward, kl: what was evaluated; metrics: of every iteration.
    """

    evaluate: Callable[[Run], dict[str, float]]
    every: int
    at: list[int] = dataclasses.field(default_factory=list)
    reward: list[float] = dataclasses.field(default_factory=list)
    kl: list[float] = dataclasses.field(default_factory=list)
    judge: list[float] = dataclasses.field(default_factory=list)
    metrics: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def start(self, run: Run) -> None:
        """Before training."""
        self.look(run)

    def iteration(self, run: Run, metrics: dict[str, float]) -> None:
        """After an iteration."""
        self.metrics.append({k: v for k, v in metrics.items() if k.startswith(("martingale", "value_"))})
        if run.done % self.every == 0:
            self.look(run)

    def end(self, run: Run) -> None:
        """Nothing more."""

    def look(self, run: Run) -> None:
        """One evaluation."""
        found = self.evaluate(run)
        self.at.append(run.done)
        self.reward.append(found["reward"])
        self.kl.append(found["kl"])
        self.judge.append(found["judge"])


def run_digits(skip: str, iterations: int, every: int, samples: int) -> dict[str, Any]:
    """The gradient form with a skip; a network that carries V alone is pretrained for a third of the iterations."""
    recipe, alone = get_recipe("digits"), skip == "none"
    pretrain = iterations // 3 if alone else 0
    layer: Mapping[str, Any] = {
        "method": {"kind": "ctrl", "value": {"skip": skip}, "pretrain": pretrain},
        "train": {"iterations": iterations},
        "samples": samples,
    }
    parts = recipe.build(configure(recipe, [layer]), torch.device("cpu"))
    curve = Curve(evaluator_of(parts).__call__, every)
    train(parts.run, [curve])
    last = curve.metrics[-5:]
    seen = {k: sum(m[k] for m in last) / len(last) for k in ("martingale_z", "martingale_drift", "value_explained")}
    return {"skip": skip, "pretrain": pretrain, "at": curve.at, "reward": curve.reward, "kl": curve.kl, **seen} | {
        "judge": curve.judge
    }


def digits_section(fast: bool) -> Section:
    """All skips on digits."""
    iterations, every, samples = (3, 1, 40) if fast else (12, 4, 200)
    rows = [run_digits(name, iterations, every, samples) for name in SKIPS]
    half = len(rows[0]["at"]) // 2
    table = Table(
        (
            "skip",
            "reward before",
            f"after {rows[0]['at'][half]}",
            f"after {iterations}",
            "path KL",
            "judge",
            "explained",
            "drift",
        ),
        [
            [
                r["skip"],
                r["reward"][0],
                r["reward"][half],
                r["reward"][-1],
                r["kl"][-1],
                f"{100 * r['judge'][-1]:.1f} %",
                r["value_explained"],
                r["martingale_drift"],
            ]
            for r in rows
        ],
        f"Gradient form, beta 0.6, {samples} pictures, one seed. Explained: share of the return's variance that V "
        "explains along fresh paths; drift: of the martingale test, in stds of the reward; both over the last five "
        f"iterations. 'none' trains V alone for the first {rows[-1]['pretrain']} iterations.",
    )
    styles = (*TONES, "line-grey")
    lines = [Line(r["at"], r["reward"], name=r["skip"], style=styles[i], dots=True) for i, r in enumerate(rows)]
    plot = Plot("values-digits", "Digits: reward by skip", "iteration", lines)
    text = "Score as action on digits with each value network, at equal iterations and rates."
    return Section("digits", "Digits", (text,), [table], [plot], {"rows": rows, "iterations": iterations})


PARTS: dict[str, Callable[[bool], Sequence[Section]]] = {
    "exact": lambda fast: [exact_section(p, fast) for p in PROBLEMS],
    "digits": lambda fast: [digits_section(fast)],
}
"""Parts of the study by name."""


def run_study(out: Path, command: str, parts: Sequence[str] | None = None, fast: bool = False) -> Path:
    """Runs the parts (all by default) and writes the study; the path of its page.

    Raises GirsanovError on an unknown part.
    """
    sections = study_of(PARTS, parts, fast)
    lead = (
        "Score as action needs a value and its gradient. Which design learns them, from how many paths, and what does "
        "the published one cost?"
    )
    return write_study(out, "Value networks", lead, sections, command)
