"""Every advantage against loops in numpy, on ragged groups; masks; dropped rewards; running buffers; two processes."""

from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.advantages import (
    ADVANTAGES,
    BatchNormalised,
    Clipped,
    GlobalStd,
    GroupCentred,
    GroupNormalised,
    LeaveOneOut,
    PerReward,
    RunningBuffer,
    Trimmed,
)
from girsanov.methods.advantages.groups import Groups, prompt_keys
from girsanov.methods.base import Turn
from girsanov.types import Cond, Prompts

TURN = Turn(0, 0)


def loo(r: np.ndarray) -> np.ndarray:
    return np.array([x - np.delete(r, i).mean() if len(r) > 1 else 0.0 for i, x in enumerate(r)])


def trimmed(r: np.ndarray, share: float) -> np.ndarray:
    cut = int(share * len(r))
    kept = np.sort(r)[cut : len(r) - cut]
    return (r - kept.mean()) / (kept.std() + 1e-4)


BY_GROUP = {
    "loo": (LeaveOneOut(), lambda r, every: loo(r)),
    "centred": (GroupCentred(), lambda r, every: r - r.mean()),
    "normalised": (GroupNormalised(), lambda r, every: (r - r.mean()) / (r.std() + 1e-4)),
    "global": (GlobalStd(), lambda r, every: (r - r.mean()) / (every.std() + 1e-4)),
    "batch": (BatchNormalised(), lambda r, every: (r - every.mean()) / (every.std() + 1e-4)),
    "clipped": (
        Clipped(GroupNormalised(), 0.5),
        lambda r, every: np.clip((r - r.mean()) / (r.std() + 1e-4), -0.5, 0.5),
    ),
    "trimmed": (Trimmed(0.25), lambda r, every: trimmed(r, 0.25)),
}


@pytest.mark.parametrize("name", BY_GROUP)
@given(
    groups=st.lists(st.integers(-3, 9), min_size=1, max_size=24),
    values=st.lists(st.integers(-8, 8), min_size=24, max_size=24),
)
def test_advantages_are_those_of_a_loop_over_groups(name: str, groups: list[int], values: list[int]) -> None:
    """Integer rewards, groups of any number and size, not side by side."""
    advantage, want = BY_GROUP[name]
    group, reward = torch.tensor(groups), torch.tensor(values[: len(groups)])
    a, mask = advantage(reward, group, {}, TURN)
    assert a.dtype == torch.float64 and a.shape == mask.shape == (len(groups),)
    every = reward.double().numpy()
    for g in set(groups):
        rows = (group == g).numpy()
        r = every[rows]
        signal = (every.max() > every.min()) if name == "batch" else (r.max() > r.min())
        if name == "trimmed" and signal:
            cut = int(0.25 * len(r))
            kept = np.sort(r)[cut : len(r) - cut]
            signal = kept.max() > kept.min()
        assert mask.numpy()[rows].tolist() == [signal] * int(rows.sum())
        np.testing.assert_allclose(a.numpy()[rows], want(r, every) if signal else 0.0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_groups_of_one_and_of_equal_rewards_are_finite(name: str) -> None:
    group = torch.tensor([0, 1, 1, 1, 2, 2])
    reward = torch.tensor([3.0, 0.1, 0.1, 0.1, 1.0, 2.0])
    a, mask = ADVANTAGES[name]()(reward, group, {}, TURN)
    assert bool(a.isfinite().all()) and bool((a[~mask] == 0).all()) and mask[4:].all()
    if name not in ("batch-normalised", "running-buffer"):
        assert mask.tolist() == [False] * 4 + [True] * 2


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_dropped_reward_is_as_if_the_sample_were_not_there(name: str) -> None:
    group, reward = torch.tensor([0, 0, 0, 0, 1, 1, 1]), torch.tensor([1.0, 2.0, float("nan"), 4.0, 0.0, 5.0, 6.0])
    a, mask = ADVANTAGES[name]()(reward, group, {}, TURN)
    there = torch.tensor([0, 1, 3, 4, 5, 6])
    want, _ = ADVANTAGES[name]()(reward[there], group[there], {}, TURN)
    assert torch.equal(a[there], want) and not mask[2] and a[2] == 0
    nothing, none = ADVANTAGES[name]()(torch.full((3,), float("nan")), torch.tensor([0, 0, 1]), {}, TURN)
    assert not none.any() and not nothing.any()


def test_several_rewards_are_added_first_or_normalised_first() -> None:
    r = torch.tensor([[1.0, 100.0], [2.0, 300.0], [4.0, 100.0], [5.0, 100.0]])
    w, group = torch.tensor([2.0, 0.1]), torch.zeros(4, dtype=torch.int64)
    total, _ = GroupNormalised()(r, group, {}, TURN, w)
    torch.testing.assert_close(total, GroupNormalised()(r @ w, group, {}, TURN)[0], rtol=1e-6, atol=0)
    each, _ = PerReward()(r, group, {}, TURN, w)
    parts = [GroupNormalised()(column, group, {}, TURN)[0] * weight for column, weight in zip(r.T, w, strict=True)]
    torch.testing.assert_close(each, parts[0] + parts[1], rtol=1e-6, atol=0)
    held, _ = Clipped(PerReward(), 1.0)(r, group, {}, TURN, w)
    torch.testing.assert_close(held, each.clamp(-1, 1))


def test_a_reward_without_a_signal_leaves_the_others() -> None:
    r = torch.tensor([[1.0, 7.0], [2.0, 7.0], [4.0, 7.0]])
    a, mask = PerReward()(r, torch.zeros(3, dtype=torch.int64), {}, TURN)
    assert mask.all() and torch.equal(a, GroupNormalised()(r[:, 0], torch.zeros(3, dtype=torch.int64), {}, TURN)[0])


class Tracker:
    """The published per-prompt tracker, as loops and deques, in double precision."""

    def __init__(self, size: int, min_count: int) -> None:
        self.size, self.min_count, self.of = size, min_count, dict[int, deque[float]]()

    def update(self, prompts: Tensor, rewards: Tensor) -> np.ndarray:
        p, r = prompts.numpy(), rewards.double().numpy()
        out = np.empty_like(r)
        for key in np.unique(p):
            mine = r[p == key]
            kept = self.of.setdefault(int(key), deque(maxlen=self.size))
            kept.extend(mine)
            source = r if len(kept) < self.min_count else np.array(kept)
            out[p == key] = (mine - source.mean()) / (source.std() + 1e-6)
        return out


def test_running_buffers_are_the_published_tracker_over_many_batches() -> None:
    """Seed 0, 12 batches of 40, 6 prompts of which some are rare; more rewards than a buffer holds at once."""
    g = torch.Generator().manual_seed(0)
    advantage, tracker, state = RunningBuffer(size=16, min_count=8), Tracker(16, 8), dict[str, Tensor]()
    for i in range(12):
        prompts = (6 * torch.rand(40, generator=g) ** 3).long() * 1_000_003 if i else torch.full((40,), 7)
        rewards = torch.randint(-5, 6, (40,), generator=g)
        a, _ = advantage(rewards, prompts, state, TURN)
        np.testing.assert_allclose(a.numpy(), tracker.update(prompts, rewards), rtol=1e-9, atol=1e-9)
    assert {k: v.shape[1:] for k, v in state.items()}["advantage_values"] == (16, 1)


def test_a_prompt_has_the_same_key_in_every_iteration() -> None:
    def ask(meta: tuple[object, ...]) -> Prompts:
        index = torch.arange(len(meta))
        return Prompts(Cond({}, index), index, index, meta)

    first, again = prompt_keys(ask((3, 5, 3))), prompt_keys(ask((5, 3)))
    assert first[0] == first[2] == again[1] and first[1] == again[0] != first[0]
    texts = prompt_keys(ask(({"text": "a cat", "n": 1}, {"text": "a cat", "n": 2}, {"text": "a dog"})))
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(prompt_keys(ask(())), torch.arange(0))


def test_groups_as_tables_by_their_size() -> None:
    groups = Groups.of(torch.tensor([7, -2, 7, 5, 7, -2, 0, 0]))
    found = [(groups.keys[which].tolist(), rows.tolist()) for which, rows in groups.by_size()]
    assert found == [([5], [[3]]), ([-2, 0], [[1, 5], [6, 7]]), ([7], [[0, 2, 4]])]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Clipped(limit=0.0), "the limit of an advantage must be positive, not 0.0"),
        (lambda: Trimmed(0.5), "trimming drops a share of at least 0 and below 0.5 at each end, not 0.5"),
        (lambda: RunningBuffer(4, 5), "min_count = 5 must lie between 1 and the buffer's size 4"),
        (
            lambda: LeaveOneOut()(torch.zeros(3), torch.zeros(4, dtype=torch.int64), {}, TURN),
            "rewards have shape [B] or [B, R] for 4 samples, not [3]",
        ),
    ],
)
def test_errors_say_what_to_do(make: object, sentence: str) -> None:
    with pytest.raises(GirsanovError) as error:
        make()
    assert str(error.value) == sentence
