"""Every alarm rings where it should, with a sentence that says what to do, and is silent elsewhere."""

from pathlib import Path

import pytest
import torch

from girsanov.callbacks import ALARMS, Alarms
from girsanov.callbacks.alarms import (
    AllDropped,
    KLRange,
    NotFinite,
    OldIsCurrent,
    RatioNotOne,
    RewardHacking,
    ZeroVariance,
)
from girsanov.folder import RunFolder
from girsanov.methods import METHODS
from girsanov.problems import LinearReward
from girsanov.recipes.base import AlarmName
from girsanov.rewards.pool import Drop, PooledReward
from girsanov.train import Run, iterate, train
from tests.tiny import restless_run, tiny_run


def evaluations(alarm: RewardHacking, rows: list[tuple[float, float, float]]) -> list[str | None]:
    """The alarm's answers to (reward, judge, judge_se) at iterations 0, 10, 20 ...; the first is before tuning."""
    run, memory = tiny_run(), {}
    keys = ("reward", "judge", "judge_se")
    run.callback_state["baseline"] = dict(zip(keys, rows[0], strict=True))
    said = []
    for i, row in enumerate(rows[1:], start=1):
        run.done = 10 * i
        said.append(alarm.check(run, {f"eval/{k}": v for k, v in zip(keys, row, strict=True)}, memory))
    return said


def test_reward_hacking_rings_when_the_judge_falls_below_its_start() -> None:
    said = evaluations(RewardHacking(), [(0.3, 0.98, 0.005), (0.5, 0.979, 0.005), (0.9, 0.7, 0.02)])
    assert said == [
        None,
        "reward hacking: since iteration 0 the reward rose from 0.3 to 0.9 and the held-out judge got worse, from 0.98 "
        "to 0.7, beyond its noise of 0.062: stop earlier (the best checkpoint is kept), weigh the KL more, or mend the "
        "reward",
    ]


def test_reward_hacking_waits_for_a_second_evaluation_below_the_best() -> None:
    rows = [(0.3, 0.5, 0.01), (0.4, 0.9, 0.01), (0.5, 0.8, 0.01), (0.6, 0.89, 0.01), (0.7, 0.8, 0.01), (0.8, 0.7, 0.01)]
    said = evaluations(RewardHacking(), rows)
    assert said[:4] == [None] * 4
    assert said[4] is not None and said[4].startswith("reward hacking: since iteration 10 the reward rose from 0.4 to")


def test_reward_hacking_is_silent_within_noise_and_when_the_reward_falls_too() -> None:
    assert evaluations(RewardHacking(), [(0.3, 0.9, 0.05), (0.9, 0.8, 0.05), (0.9, 0.75, 0.05)]) == [None, None]
    assert evaluations(RewardHacking(), [(0.3, 0.9, 0.01), (0.2, 0.5, 0.01), (0.1, 0.2, 0.01)]) == [None, None]


def test_reward_hacking_with_a_judge_that_is_better_low() -> None:
    said = evaluations(RewardHacking(sign=-1), [(0.3, 1.0, 0.02), (0.6, 0.2, 0.02), (2.0, 3.0, 0.1)])
    assert said[0] is None
    assert said[1] is not None and "got worse, from 1 to 3, beyond its noise of 0.31" in said[1]


def test_not_finite_names_the_metrics() -> None:
    run = tiny_run()
    assert NotFinite().check(run, {"loss": 1.0}, {}) is None
    assert NotFinite().check(run, {"loss": float("nan"), "kl": float("inf"), "reward": 1.0}, {}) == (
        "not finite: loss, kl; lower the learning rate, or look at the reward and at what was just changed"
    )


def test_the_kl_leaves_its_range() -> None:
    run = tiny_run()
    assert KLRange(5.0).check(run, {"eval/kl": 4.9}, {}) is None
    assert KLRange(5.0).check(run, {"eval/kl": 6.0, "kl": 1.0}, {}) == (
        "KL too large: 6 exceeds 5, the model is far from the pretrained one: weigh the KL more, lower the learning "
        "rate or stop earlier"
    )
    assert KLRange().check(run, {"kl": 1e9}, {}) is None
    assert KLRange().check(run, {"kl": -2.0}, {}) == (
        "KL negative: -2 cannot be, so its estimate is broken: take more samples, or look at how it is estimated"
    )


def test_the_ratio_is_one_at_the_first_pass_and_a_false_one_rings() -> None:
    method = METHODS["clipped-pg"](reward=LinearReward([1.0, 0.5]))
    run = tiny_run(method, minibatches=2, epochs=2, iterations=2, lr=0.1)
    metrics = iterate(run)
    assert metrics["first/ratio_min"] == metrics["first/ratio_max"] == 1.0
    assert metrics["ratio_max"] > 1.0 + 1e-6  # later passes have moved
    assert RatioNotOne().check(run, metrics, {}) is None
    assert RatioNotOne().check(run, {**metrics, "first/ratio_max": 1.01}, {}) == (
        "ratio not 1: it is off by 0.01 at the first pass over a batch, so old and new densities are computed "
        "differently: switch dropout off, and use the same precision and micro-batch for both"
    )


def test_groups_without_variance() -> None:
    run = tiny_run(METHODS["clipped-pg"](reward=LinearReward([0.0, 0.0])))
    metrics = iterate(run)
    assert metrics["zero_variance"] == 1.0
    assert ZeroVariance().check(run, metrics, {}) == (
        "groups without variance: 100% of the samples share their reward with their whole group and teach nothing: use "
        "larger groups, harder prompts, or a finer reward"
    )
    assert ZeroVariance().check(run, {"zero_variance": 0.4}, {}) is None


def failing(share: float) -> PooledReward:
    """A reward whose calls fail, the first ``share`` of each batch; failures are let pass."""

    def score(x: torch.Tensor, prompts: list[object]) -> torch.Tensor:
        return torch.where(torch.arange(len(x)) < share * len(x), torch.nan, x.sum(1).double())

    return PooledReward(score, on_failure=Drop())


@pytest.mark.parametrize("name", ["clipped-pg", "nft"])
def test_a_batch_without_any_reward_rings_and_says_only_that(name: str) -> None:
    """With every sample dropped one alarm speaks; with half of them none does."""
    for share, rings in ((1.0, ["all-dropped"]), (0.5, [])):
        run = tiny_run(METHODS[name](reward=failing(share)))
        metrics = iterate(run)
        assert metrics["dropped"] == share
        others = {"all-dropped": AllDropped(), "not-finite": NotFinite(), "zero-variance": ZeroVariance()}
        assert [n for n, alarm in others.items() if alarm.check(run, metrics, {})] == rings
    assert AllDropped().check(run, {"dropped": 1.0}, {}) == (
        "every sample was dropped: the reward failed for the whole batch, so nothing is learned from it: mend the "
        "reward (or its server), or end such runs with stop_on=[all-dropped]"
    )
    assert AllDropped().check(run, {}, {}) is None


def test_an_old_policy_that_never_lags() -> None:
    run, memory = restless_run(), {}
    said = [OldIsCurrent().check(run, {}, memory) for _ in range(3)]  # the copy was just made: equal
    assert said[:2] == [None, None]
    assert said[2] == (
        "old policy equal to the current one for 3 iterations: nothing is compared with anything; raise the decay of "
        "the old policy, or look at whether the learning rate is zero"
    )
    with torch.no_grad():
        run.policy.parameters()[0].add_(1.0)
    assert OldIsCurrent().check(run, {}, memory) is None and memory["count"] == 0
    assert OldIsCurrent().check(tiny_run(), {}, {}) is None


class Says:
    """A callback that sets metrics by iteration."""

    def __init__(self, values: list[dict[str, float]]) -> None:
        self.values = values

    def start(self, run: Run) -> None: ...

    def iteration(self, run: Run, metrics: dict[str, float]) -> None:
        metrics |= self.values[run.done - 1]

    def end(self, run: Run) -> None: ...


def test_an_alarm_is_recorded_when_it_begins_to_ring(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = RunFolder(tmp_path)
    high, low = {"kl": 9.0}, {"kl": 1.0}
    train(tiny_run(iterations=6), [Says([low, high, high, low, high, low]), Alarms({"kl-range": KLRange(5.0)}, folder)])
    rows = folder.records("alarm")
    assert [r["iteration"] for r in rows] == [2, 5]
    assert all(r["alarm"] == "kl-range" and r["message"].startswith("KL too large: 9 exceeds 5") for r in rows)
    assert capsys.readouterr().out.startswith("alarm at iteration 2: KL too large")


def test_an_alarm_may_end_the_run(tmp_path: Path) -> None:
    alarms = Alarms({"kl-range": KLRange(5.0)}, RunFolder(tmp_path), stop=["kl-range"])
    run = train(tiny_run(iterations=6), [Says([{"kl": 1.0}, {"kl": 9.0}] + [{}] * 4), alarms])
    assert run.done == 2 and run.stopped == "the alarm kl-range"


def test_the_configuration_knows_every_alarm() -> None:
    assert set(AlarmName.__args__) == set(ALARMS)
