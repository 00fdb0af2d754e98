"""Did it work? The first thing a report says, from the first and the last evaluation and the alarms."""

from dataclasses import dataclass

from girsanov.report.data import RunData, Shown


@dataclass(frozen=True)
class Verdict:
    """A judgement: its colour ("good", "bad", "warn", "flat"), a headline, and the sentence that supports it."""

    colour: str
    headline: str
    reason: str


def verdict(run: RunData) -> Verdict:
    """The verdict on a run."""
    reward, judge = run.metric("reward"), run.metric("judge")
    if reward is None or reward.after is None:
        return Verdict("flat", "Nothing to judge yet", "The run has not been evaluated after its start.")
    told = ", ".join(change(m) for m in (reward, judge) if m is not None and m.after is not None)
    reason = f"{told[0].upper()}{told[1:]}. Intervals are 95 %."
    hacked = any(a.get("alarm") == "reward-hacking" for a in run.alarms)
    if reward.trend == "better" and judge is not None and judge.trend == "worse":
        return Verdict("bad", "The reward was hacked", f"{reason} The held-out judge got worse as the reward rose.")
    if reward.trend == "better" and hacked:
        return Verdict("warn", "It worked, with a warning", f"{reason} The reward-hacking alarm rang on the way.")
    if reward.trend == "better":
        return Verdict("good", "It worked", reason)
    if reward.trend == "worse":
        return Verdict("bad", "It got worse", reason)
    return Verdict("flat", "No clear effect", f"{reason} The reward has not moved beyond its noise.")


def change(metric: Shown) -> str:
    """ "the reward rose from 0.31 to 0.45"."""
    assert metric.before is not None and metric.after is not None
    name = metric.label if metric.label[1:2].isupper() else metric.label[0].lower() + metric.label[1:]
    if abs(metric.after - metric.before) <= metric.noise:
        return f"{name} held at {metric.text('after')}"
    verb = "rose" if metric.after > metric.before else "fell"
    return f"{name} {verb} from {metric.text('before')} to {metric.text('after')}"
