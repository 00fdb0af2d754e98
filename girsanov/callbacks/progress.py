"""A progress bar with the time left and the numbers that matter."""

from collections.abc import Sequence

from tqdm import tqdm

from girsanov.train import Run

SHOWN = ("reward", "loss", "kl", "eval/judge")


class Progress:
    """A bar over the iterations, on process 0.

    Args:
        shown: names of the metrics to show, where they are present.
        quiet: no bar.
    """

    def __init__(self, shown: Sequence[str] = SHOWN, quiet: bool = False) -> None:
        self.shown, self.quiet = tuple(shown), quiet
        self.values: dict[str, str] = {}
        self.bar: tqdm | None = None

    def start(self, run: Run) -> None:
        """Opens the bar where the run stands."""
        hidden = self.quiet or run.reduce.rank != 0
        self.bar = tqdm(
            total=run.config.iterations, initial=run.done, desc="tuning", unit="it", disable=hidden, dynamic_ncols=True
        )

    def iteration(self, run: Run, metrics: dict[str, float]) -> None:
        """Moves on by one."""
        assert self.bar is not None
        self.values |= {n.removeprefix("eval/"): f"{metrics[n]:.3g}" for n in self.shown if n in metrics}
        self.bar.set_postfix(self.values, refresh=False)
        self.bar.update()

    def end(self, run: Run) -> None:
        """Closes the bar."""
        if self.bar is not None:
            self.bar.close()
