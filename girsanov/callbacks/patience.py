"""Early stopping: a run whose evaluations no longer get better ends."""

from girsanov.train import Run


class Patience:
    """Ends the run after N evaluations in a row without a better one than the best so far, that before tuning included.

    What counts is the held-out judge where there is one, else the evaluated reward: the training reward may go on
    rising while what it stands for does not. The best checkpoint is kept either way.

    Args:
        key: name of the evaluated number.
        sign: 1 if a high one is good, -1 if a low one is.
        evaluations: N.
    """

    def __init__(self, key: str, sign: float, evaluations: int) -> None:
        self.key, self.sign, self.evaluations = key, sign, evaluations

    def start(self, run: Run) -> None:
        """The evaluation before tuning is the first to beat."""
        if "patience" not in run.callback_state:
            first = run.callback_state.get("baseline", {}).get(self.key)
            run.callback_state["patience"] = {"best": first, "iteration": 0, "waited": 0}

    def iteration(self, run: Run, metrics: dict[str, float]) -> None:
        """Counts the evaluations without a better one."""
        value = metrics.get(f"eval/{self.key}")
        if value is None:
            return
        state = run.callback_state["patience"]
        if state["best"] is None or self.sign * value > self.sign * state["best"]:
            state.update(best=value, iteration=run.done, waited=0)
            return
        state["waited"] += 1
        if state["waited"] >= self.evaluations:
            run.stop(
                f"patience: {self.evaluations} evaluations without a better {self.key} than {state['best']:.4g}, "
                f"that of iteration {state['iteration']}"
            )

    def end(self, run: Run) -> None:
        """Nothing: the state is in the checkpoint."""
