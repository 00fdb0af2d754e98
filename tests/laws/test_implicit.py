"""The implicit reward of a tuned model against a true one: exact on Gaussian data."""

import math

import pytest
import torch

from girsanov.errors import GirsanovError
from girsanov.evaluation.implicit import agreement, implicit_reward, recovery
from girsanov.problems import Gaussian, LinearReward, tilt
from girsanov.processes import VP, RectifiedFlow
from girsanov.types import Cond

F64 = torch.float64
LAW, REWARD = Gaussian([0.8, -0.3], 1.3 * torch.eye(2)), LinearReward([0.6, -0.9])


def pairs(n: int) -> tuple[torch.Tensor, torch.Tensor, Cond]:
    items = LAW.sample(2 * n, torch.Generator().manual_seed(0)).unflatten(0, (n, 2))
    return items, items @ REWARD.b, Cond({}, torch.zeros(n, dtype=torch.int64))


@pytest.mark.parametrize(("process", "prediction"), [(RectifiedFlow(), "velocity"), (VP(), "eps")])
def test_the_tilted_law_implies_its_reward(process: object, prediction: str) -> None:
    """Noise and time are shared, so the gap of s is a multiple of the gap of r in every pair of a prompt; over prompts
    the multiple varies with the times drawn (64 of them, seed 0). Another reward is recovered as far as it agrees."""
    items, reward, cond = pairs(200)
    models = [law.model(process, prediction) for law in (tilt(LAW, REWARD, 0.7), LAW)]
    s = implicit_reward(*models, items, cond, draws=64)
    gap, true = s[:, 0] - s[:, 1], reward[:, 0] - reward[:, 1]
    assert bool((gap * true > 0).all())
    found = recovery(s, reward)
    assert found["ordered"] == 1.0 and found["recovered"] > 0.98
    other = recovery(s, items @ torch.tensor([0.9, 0.6], dtype=F64))  # orthogonal on round data
    assert abs(other["recovered"]) < 4.5 / math.sqrt(200) and abs(other["ordered"] - 0.5) < 4.5 * 0.5 / math.sqrt(200)
    opposite = recovery(s, -reward)
    assert opposite["recovered"] == pytest.approx(-found["recovered"]) and opposite["ordered"] == 0.0


def test_rows_drawn_apart_are_those_drawn_together() -> None:
    items, _, cond = pairs(7)
    models = [law.model(RectifiedFlow()) for law in (tilt(LAW, REWARD, 0.7), LAW)]
    whole, rows = implicit_reward(*models, items, cond, draws=3), torch.arange(7)
    apart = [implicit_reward(*models, items[ids], cond.take(ids), draws=3, ids=ids) for ids in rows.split(3)]
    torch.testing.assert_close(torch.cat(apart), whole, rtol=1e-12, atol=0)
    assert not torch.allclose(implicit_reward(*models, items[3:], cond.take(rows[3:]), draws=3), whole[3:])


def test_an_untuned_model_has_recovered_nothing() -> None:
    items, reward, cond = pairs(20)
    model = LAW.model(RectifiedFlow())
    found = recovery(implicit_reward(model, model, items, cond), reward)
    assert found["recovered"] == 0.0 and found["ordered"] == 0.5


def test_what_a_pool_dropped_is_left_out() -> None:
    s, r = (
        torch.tensor([[2.0, 1.0], [0.0, 1.0], [5.0, 1.0], [0.0, 9.0]]),
        torch.tensor([[3.0, 1], [1, 2], [9, 1], [1, 0]]),
    )
    r[3, 1] = float("nan")
    assert recovery(s, r)["ordered"] == 1.0
    with pytest.raises(GirsanovError, match="at least three pairs with finite rewards, not 2"):
        recovery(s[2:], torch.cat([r[2:3], r[2:3]])[:2])


def test_what_labels_are_worth() -> None:
    """The mean of ``sigma(|gap| / T)``; one half for gaps of 0 is left out, T = 0 never errs."""
    r = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]])
    want = (1 / (1 + math.exp(-0.5)) + 1 / (1 + math.exp(-1.0))) / 2
    assert agreement(r, 2.0) == pytest.approx(want) and agreement(r, 0.0) == 1.0
