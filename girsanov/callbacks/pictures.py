"""The same samples again and again: what tuning does to fixed prompts and noise, while it does it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from girsanov.callbacks.trackers import Tracker
from girsanov.folder import RunFolder
from girsanov.models import ModelLike
from girsanov.train import Run

SEED = 20_000_003  # that of the report's pictures before and after
Sample = Callable[[ModelLike, int, int], Any]


class Pictures:
    """Draws a few samples before tuning and every N iterations: ``samples/0000020.png``, and to the trackers.

    Requests and noise are the same every time, so a sheet differs from the one before by what was learned between
    them. All processes draw (a network that is split runs on all of them), process 0 writes.

    Args:
        sample: ``sample(model, n, seed)`` -> samples.
        draw: samples -> PNG bytes.
        every: iterations between two sheets.
        count: samples of a sheet.
        folder: the run folder.
        trackers: where the sheets go as well.
    """

    def __init__(
        self,
        sample: Sample,
        draw: Callable[[Any], bytes],
        every: int,
        count: int,
        folder: RunFolder,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.sample, self.draw, self.every, self.count = sample, draw, every, count
        self.folder, self.trackers = folder.samples, tuple(trackers)

    def start(self, run: Run) -> None:
        """Draws the model before tuning."""
        if run.done == 0:
            self._draw(run)

    def iteration(self, run: Run, metrics: dict[str, float]) -> None:
        """Draws when it is time."""
        if run.done % self.every == 0:
            self._draw(run)

    def end(self, run: Run) -> None:
        """Nothing: the report's pictures show the end."""

    def _draw(self, run: Run) -> None:
        with torch.no_grad():
            samples = self.sample(run.model(), self.count, SEED)
        if run.reduce.rank == 0:
            sheet = self.draw(samples)
            (self.folder / f"{run.done:07d}.png").write_bytes(sheet)
            for tracker in self.trackers:
                tracker.picture("samples", sheet, run.done)
