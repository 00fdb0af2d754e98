"""Checkpoints every N iterations and at the end; the last few are kept, and the best."""

import shutil

from girsanov.checkpoint import checkpoints, save
from girsanov.folder import RunFolder
from girsanov.train import Run


class Checkpoints:
    """Saves the run; keeps the newest ``keep`` checkpoints and the one with the best score.

    Args:
        folder: the run folder.
        every: iterations between checkpoints.
        keep: how many of the newest stay.
        best: name of the evaluated number that is to be high; a checkpoint is saved whenever it rises.
        sign: -1 if it is to be low.
    """

    def __init__(
        self, folder: RunFolder, every: int, keep: int = 2, best: str | None = None, sign: float = 1.0
    ) -> None:
        self.folder, self.every, self.keep, self.best, self.sign = folder.checkpoints, every, keep, best, sign
        self.saved: int | None = None

    def start(self, run: Run) -> None:
        """Saves iteration 0 of a new run, so that any kill leaves something to go on from."""
        if run.done == 0:
            self._save(run)
        self.saved = run.done

    def iteration(self, run: Run, metrics: dict[str, float]) -> None:
        """Saves when it is time, or when the score is the best so far."""
        better = False
        score = metrics.get(f"eval/{self.best}")
        if score is not None:
            before = run.callback_state.get("best")
            better = before is None or self.sign * score > self.sign * before["score"]
            if better:
                run.callback_state["best"] = {"iteration": run.done, "score": score}
        if better or run.done % self.every == 0:
            self._save(run)

    def end(self, run: Run) -> None:
        """Saves where the run ended, unless it broke off within an iteration."""
        if not run.failed and self.saved != run.done:
            self._save(run)

    def _save(self, run: Run) -> None:
        save(run, self.folder)
        self.saved = run.done
        if run.reduce.rank == 0:
            kept = {f"{run.callback_state['best']['iteration']:07d}"} if "best" in run.callback_state else set()
            paths = checkpoints(self.folder)
            for path in paths[: -self.keep]:
                if path.name not in kept:
                    shutil.rmtree(path)
