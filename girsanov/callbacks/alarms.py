r"""Alarms: what a person who has seen many runs go wrong would look at, each with what to do about it.

An alarm looks at the metrics of an iteration and says nothing, or a sentence. It is recorded when it begins to ring
(not at every iteration it goes on) in ``metrics.jsonl`` and in ``run.callback_state["alarms"]``.

Reward hacking: with the judge's standard errors e, two evaluations differ beyond noise if

.. math:: |j_1 - j_2| > z \sqrt{e_1^2 + e_2^2}

The alarm rings when the reward has risen and the judge is worse, beyond noise, than before tuning; or, at two
evaluations in a row, than at the best evaluation so far (training wavers, and one bad evaluation is no trend).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from girsanov.folder import RunFolder
from girsanov.train import Run


class Alarm(ABC):
    """One thing that can go wrong."""

    @abstractmethod
    def check(self, run: Run, metrics: Mapping[str, float], memory: dict[str, Any]) -> str | None:
        """A sentence that says what is wrong and what to do, or None. ``memory`` is this alarm's own, and saved."""


@dataclass(frozen=True)
class RewardHacking(Alarm):
    """The reward rises while the held-out judge gets worse by more than its noise.

    Attributes:
        judge: name of the judge's number in the evaluation; ``NAME_se`` is its standard error.
        sign: 1 if a high judge is good, -1 if a low one is.
        z: how many standard errors are noise.
        margin: a change up to this much never rings.
        patience: evaluations in a row that are worse than the best one before it rings.
    """

    judge: str = "judge"
    sign: float = 1.0
    z: float = 3.0
    margin: float = 0.0
    patience: int = 2

    def check(self, run: Run, metrics: Mapping[str, float], memory: dict[str, Any]) -> str | None:
        """Compares an evaluation with the one before tuning and with the best one since."""
        now = {k.removeprefix("eval/"): v for k, v in metrics.items() if k.startswith("eval/")}
        first = {**run.callback_state.get("baseline", {}), "iteration": 0}
        if not {self.judge, "reward"} <= now.keys() & first.keys():
            return memory.get("ringing")
        best = memory.setdefault("best", first)
        if self.sign * (now[self.judge] - best[self.judge]) >= 0:
            memory["best"] = {**now, "iteration": run.done}
        memory["count"] = memory.get("count", 0) + 1 if self.hacked(best, now) else 0
        since = first if self.hacked(first, now) else best if memory["count"] >= self.patience else None
        memory["ringing"] = None if since is None else self.sentence(since, now)
        return memory["ringing"]

    def hacked(self, before: Mapping[str, float], now: Mapping[str, float]) -> bool:
        """Whether the reward rose and the judge got worse beyond its noise between two evaluations."""
        loss = self.sign * (before[self.judge] - now[self.judge])
        return loss > max(self.noise(before, now), self.margin) and now["reward"] > before["reward"]

    def noise(self, before: Mapping[str, float], now: Mapping[str, float]) -> float:
        """How far two evaluations of the judge may differ by chance."""
        error = f"{self.judge}_se"
        return self.z * math.hypot(before.get(error, 0.0), now.get(error, 0.0))

    def sentence(self, before: Mapping[str, float], now: Mapping[str, float]) -> str:
        """What happened, and what to do."""
        return (
            f"reward hacking: since iteration {before['iteration']:.0f} the reward rose from {before['reward']:.4g} to "
            f"{now['reward']:.4g} and the held-out judge got worse, from {before[self.judge]:.4g} to "
            f"{now[self.judge]:.4g}, beyond its noise of {self.noise(before, now):.2g}: stop earlier (the best "
            "checkpoint is kept), weigh the KL more, or mend the reward"
        )


@dataclass(frozen=True)
class NotFinite(Alarm):
    """A metric is NaN or infinite."""

    def check(self, run: Run, metrics: Mapping[str, float], memory: dict[str, Any]) -> str | None:
        """Names the metrics."""
        nobody = {"reward", "reward_std"} if metrics.get("dropped", 0.0) >= 1 else set()  # ``AllDropped`` says so
        bad = [name for name, value in metrics.items() if not math.isfinite(value) and name not in nobody]
        if not bad:
            return None
        return (
            f"not finite: {', '.join(bad)}; lower the learning rate, or look at the reward and at what was just changed"
        )


@dataclass(frozen=True)
class KLRange(Alarm):
    """The divergence from the pretrained model leaves its expected range.

    Attributes:
        high: largest expected value; None is no limit.
        low: smallest; a KL is not negative, but an estimate of a small one may be.
    """

    high: float | None = None
    low: float = -0.5

    def check(self, run: Run, metrics: Mapping[str, float], memory: dict[str, Any]) -> str | None:
        """Looks at the evaluated KL, or at the training one."""
        value = metrics.get("eval/kl", metrics.get("kl"))
        if value is None:
            return memory.get("ringing")
        memory["ringing"] = None
        if self.high is not None and value > self.high:
            memory["ringing"] = (
                f"KL too large: {value:.4g} exceeds {self.high:.4g}, the model is far from the pretrained one: weigh "
                "the KL more, lower the learning rate or stop earlier"
            )
        elif value < self.low:
            memory["ringing"] = (
                f"KL negative: {value:.4g} cannot be, so its estimate is broken: take more samples, or look at how it "
                "is estimated"
            )
        return memory["ringing"]


@dataclass(frozen=True)
class RatioNotOne(Alarm):
    """The likelihood ratio is not 1 at the first pass over a batch.

    Attributes:
        tolerance: how far it may be from 1.
    """

    tolerance: float = 1e-6

    def check(self, run: Run, metrics: Mapping[str, float], memory: dict[str, Any]) -> str | None:
        """Looks at the least and the largest ratio of the first update."""
        ends = [metrics[n] for n in ("first/ratio_min", "first/ratio_max") if n in metrics]
        off = max((abs(r - 1) for r in ends), default=0.0)
        if off <= self.tolerance:
            return None
        return (
            f"ratio not 1: it is off by {off:.2g} at the first pass over a batch, so old and new densities are "
            "computed differently: switch dropout off, and use the same precision and micro-batch for both"
        )


@dataclass(frozen=True)
class ZeroVariance(Alarm):
    """Many groups have the same reward for all their samples, so they teach nothing.

    Attributes:
        share: largest share of such samples that is expected.
    """

    share: float = 0.5

    def check(self, run: Run, metrics: Mapping[str, float], memory: dict[str, Any]) -> str | None:
        """Looks at the share of samples in such groups, besides those whose reward failed."""
        value = metrics.get("zero_variance", 0.0) - metrics.get("dropped", 0.0)
        if value <= self.share:
            return None
        return (
            f"groups without variance: {value:.0%} of the samples share their reward with their whole group and teach "
            "nothing: use larger groups, harder prompts, or a finer reward"
        )


@dataclass(frozen=True)
class AllDropped(Alarm):
    """No sample of a batch has a reward: every call of it failed, and the failures are let pass."""

    def check(self, run: Run, metrics: Mapping[str, float], memory: dict[str, Any]) -> str | None:
        """Looks at the share of dropped samples."""
        if metrics.get("dropped", 0.0) < 1:
            return None
        return (
            "every sample was dropped: the reward failed for the whole batch, so nothing is learned from it: mend the "
            "reward (or its server), or end such runs with stop_on=[all-dropped]"
        )


@dataclass(frozen=True)
class OldIsCurrent(Alarm):
    """A method that compares with an older policy has one that is equal to the current policy after an update.

    Attributes:
        patience: iterations in a row before it rings.
    """

    patience: int = 3

    def check(self, run: Run, metrics: Mapping[str, float], memory: dict[str, Any]) -> str | None:
        """Compares the weights."""
        old = run.policy.copies.get("old")
        current = run.policy.held()
        equal = old is not None and all(torch.equal(old[name], w) for name, w in current.items())
        same = bool(run.reduce.mean_host(torch.tensor(float(equal))) == 1.0)  # each process may hold a part
        memory["count"] = memory.get("count", 0) + 1 if same else 0
        if memory["count"] < self.patience:
            return None
        return (
            f"old policy equal to the current one for {memory['count']} iterations: nothing is compared with anything; "
            "raise the decay of the old policy, or look at whether the learning rate is zero"
        )


ALARMS: dict[str, type[Alarm]] = {
    "reward-hacking": RewardHacking,
    "not-finite": NotFinite,
    "kl-range": KLRange,
    "ratio-not-one": RatioNotOne,
    "zero-variance": ZeroVariance,
    "all-dropped": AllDropped,
    "old-is-current": OldIsCurrent,
}
"""Every alarm by name."""


class Alarms:
    """Checks all alarms after every iteration and records those that begin to ring.

    Args:
        alarms: name -> alarm.
        folder: the run folder.
        stop: names of the alarms that end the run.
    """

    def __init__(self, alarms: Mapping[str, Alarm], folder: RunFolder, stop: Sequence[str] = ()) -> None:
        self.alarms, self.folder, self.ends = dict(alarms), folder, frozenset(stop)

    def start(self, run: Run) -> None:
        """Makes room for what the alarms remember."""
        run.callback_state.setdefault("alarms", {name: {} for name in self.alarms})

    def iteration(self, run: Run, metrics: dict[str, float]) -> None:
        """Checks, records, and ends the run if asked to."""
        for name, alarm in self.alarms.items():
            memory = run.callback_state["alarms"].setdefault(name, {})
            message = alarm.check(run, metrics, memory)
            if message is not None and not memory.get("on", False):
                self._ring(run, name, message)
            memory["on"] = message is not None

    def _ring(self, run: Run, name: str, message: str) -> None:
        if run.reduce.rank == 0:
            tqdm.write(f"alarm at iteration {run.done}: {message}")
            self.folder.log(run.done, {"alarm": name, "message": message}, "alarm")
        if name in self.ends:
            run.stop(f"the alarm {name}")

    def end(self, run: Run) -> None:
        """Nothing: the alarms have been recorded."""
