"""What watches a run of the command line: its callbacks, chosen by the configuration, in the order that they need."""

from girsanov.callbacks import (
    TRACKERS,
    Alarms,
    Checkpoints,
    Evaluation,
    Metrics,
    Patience,
    Pictures,
    Progress,
    Throughput,
)
from girsanov.callbacks.alarms import (
    Alarm,
    AllDropped,
    KLRange,
    NotFinite,
    OldIsCurrent,
    RatioNotOne,
    RewardHacking,
    ZeroVariance,
)
from girsanov.config import describe
from girsanov.folder import RunFolder
from girsanov.recipes.base import Assembled, RunConfig
from girsanov.train import Callback

SHEET = 4  # samples of the pictures during a run


def callbacks_of(config: RunConfig, folder: RunFolder, parts: Assembled, quiet: bool) -> list[Callback]:
    """The callbacks of a run."""
    judge = parts.metric("judge")
    best, sign = ("reward", 1.0) if judge is None else ("judge", judge.sign)
    alarms: dict[str, Alarm] = {
        "reward-hacking": RewardHacking(sign=sign),
        "not-finite": NotFinite(),
        "kl-range": KLRange(config.kl_max),
        "ratio-not-one": RatioNotOne(),
        "zero-variance": ZeroVariance(),
        "all-dropped": AllDropped(),
        "old-is-current": OldIsCurrent(),
    }
    made: list[Callback] = [Throughput(), Metrics(folder), Evaluation(parts.evaluate, config.evaluate_every, folder)]
    made.append(Alarms(alarms, folder, config.stop_on))
    if config.patience is not None:
        made.append(Patience(best, sign, config.patience))
    trackers = [TRACKERS[name](folder, describe(config)) for name in config.trackers]
    made += trackers
    if config.pictures_every is not None:
        count = min(parts.pictured, SHEET)
        made.append(Pictures(parts.sample, parts.draw, config.pictures_every, count, folder, trackers))
    made += [Progress(quiet=quiet), Checkpoints(folder, config.checkpoint_every, config.keep_checkpoints, best, sign)]
    return made
