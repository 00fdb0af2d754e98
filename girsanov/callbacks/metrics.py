"""Metrics into the run folder, one JSON line an iteration, and the evaluations between them."""

import time
from collections.abc import Callable
from typing import Any

import torch

from girsanov.errors import GirsanovError
from girsanov.folder import RunFolder
from girsanov.train import Run

Evaluate = Callable[[Run], dict[str, float]]
"""``evaluate(run) -> numbers``; ``NAME_se`` is the standard error of ``NAME``."""


class Metrics:
    """Writes the metrics of every iteration to ``metrics.jsonl``. Only process 0 writes."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def start(self, run: Run) -> None:
        """Drops the lines that a killed run wrote after the checkpoint it goes on from."""
        if run.reduce.rank == 0:
            fresh = not run.callback_state  # nothing was restored: the evaluation before tuning comes again, too
            self.folder.truncate(-1 if fresh else run.done)

    def iteration(self, run: Run, metrics: dict[str, float]) -> None:
        """One line."""
        if run.reduce.rank == 0:
            self.folder.log(run.done, metrics)

    def end(self, run: Run) -> None:
        """Nothing: every line is on its way already."""


class Evaluation:
    """Evaluates before the first iteration, every N iterations and after the last one.

    The numbers go to ``metrics.jsonl`` as a line of the kind "evaluation" and, as ``eval/...``, to the callbacks that
    come after this one; the first ones stay in ``run.callback_state["baseline"]``.
    """

    def __init__(self, evaluate: Evaluate, every: int, folder: RunFolder) -> None:
        self.evaluate, self.every, self.folder = evaluate, every, folder

    def start(self, run: Run) -> None:
        """Evaluates the model before tuning."""
        if "baseline" not in run.callback_state:
            run.callback_state["baseline"] = self._evaluate(run)

    def iteration(self, run: Run, metrics: dict[str, float]) -> None:
        """Evaluates when it is time."""
        if run.done % self.every == 0 or run.done == run.config.iterations:
            metrics |= {f"eval/{name}": value for name, value in self._evaluate(run).items()}

    def end(self, run: Run) -> None:
        """Nothing: the last iteration has been evaluated, and an interrupted run goes on later."""

    def _evaluate(self, run: Run) -> dict[str, float]:
        began = time.perf_counter()
        try:
            values: dict[str, Any] = {name: float(v) for name, v in self.evaluate(run).items()}
        except torch.OutOfMemoryError as error:
            raise GirsanovError(
                "out of memory in an evaluation: lower batch, the samples that it draws at a time; the last checkpoint "
                "is intact"
            ) from error
        if run.reduce.rank == 0:
            seconds = {"time/evaluate": time.perf_counter() - began}
            self.folder.log(run.done, {**values, **seconds}, "evaluation")
        return values
