"""Sums of rewards: the weighted sum, its gradient, the columns that advantages read."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from girsanov.config.parts import construct
from girsanov.config.resolve import Problems, resolve
from girsanov.errors import GirsanovError
from girsanov.methods.policy_gradient.clipped import ClippedPG
from girsanov.problems.rewards import LinearReward, QuadraticReward
from girsanov.rewards import Ink, load_reward
from girsanov.rewards.base import Reward
from girsanov.rewards.combine import WeightedSum, total
from girsanov.rewards.function import FunctionReward
from girsanov.rewards.pool import Drop, Fallback, PooledReward
from girsanov.rewards.scores import names, submit, weights
from girsanov.rewards.workers import Processes, Threads
from girsanov.types import Cond, Prompts

N = torch.arange(6)
ASK = Prompts(Cond({}, N), N, N // 2, tuple(range(6)))
LINEAR = LinearReward(torch.tensor([1.0, -2.0]))
SQUARE = QuadraticReward(torch.eye(2), torch.zeros(2))


def x():
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def count(images, meta):
    return [m % 3 for m in meta]


def test_the_sum_and_its_gradient():
    both = WeightedSum([LINEAR, SQUARE], [2.0, -0.5])
    assert both.differentiable
    y = x().requires_grad_(True)
    r = both(y, ASK)
    torch.testing.assert_close(r, 2.0 * (y[:, 0] - 2 * y[:, 1]) + 0.25 * y.square().sum(1))
    (gradient,) = torch.autograd.grad(r.sum(), y)
    torch.testing.assert_close(gradient, torch.tensor([2.0, -4.0], dtype=torch.float64) + 0.5 * y.detach())


def test_one_part_without_a_gradient_takes_the_gradient_from_the_sum():
    black_box = FunctionReward(count, differentiable=False)
    assert not WeightedSum([LINEAR, black_box]).differentiable


def test_the_columns_of_a_sum_with_parts_in_the_background_and_sums_inside():
    inner = WeightedSum([LINEAR, SQUARE], [1.0, 3.0])
    with PooledReward(count) as pooled:
        outer = WeightedSum([inner, pooled], [0.5, 2.0])
        scores = submit(outer, x(), ASK).result()
        assert names(outer) == (LINEAR.name, SQUARE.name, "count")
        assert weights(outer).tolist() == [0.5, 1.5, 2.0]
        expected = torch.stack([LINEAR(x()), SQUARE(x()), torch.tensor([0, 1, 2, 0, 1, 2.0], dtype=torch.float64)], 1)
        torch.testing.assert_close(scores, expected)
        torch.testing.assert_close(outer(x(), ASK), total(scores, outer.column_weights))
        torch.testing.assert_close(outer(x(), ASK), 0.5 * inner(x(), ASK) + 2.0 * pooled(x(), ASK))


def test_a_single_reward_is_one_column_of_weight_one():
    scores = submit(LINEAR, x(), ASK).result()
    assert torch.equal(scores, LINEAR(x())[:, None])
    assert weights(LINEAR).tolist() == [1.0] and names(LINEAR) == (LINEAR.name,)


def test_a_dropped_part_drops_the_sample():
    def fails(images, meta):
        return [float("nan") if m == 4 else 0.0 for m in meta]

    with PooledReward(fails, on_failure=Drop()) as pooled:
        r = WeightedSum([LINEAR, pooled])(x(), ASK)
    assert r.isnan().tolist() == [False] * 4 + [True, False]


class Late(Reward):
    name = "late"

    def __init__(self, order):
        self.order = order

    def __call__(self, x, prompts):
        self.order.append("here")
        return x.sum(1)


class Background(Late):
    def submit(self, x, prompts):
        self.order.append("background")
        return submit(LINEAR, x, prompts)


def test_what_scores_in_the_background_starts_first():
    order = []
    WeightedSum([Late(order), Background(order)])(x(), ASK)
    assert order == ["background", "here"]


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        (lambda: WeightedSum([]), "a sum of rewards needs at least one reward"),
        (
            lambda: WeightedSum([LINEAR, SQUARE], [1.0]),
            "1 weights for 2 rewards: give one weight a reward",
        ),
        (
            lambda: WeightedSum([LINEAR], [float("inf")]),
            "the weights of a sum of rewards must be finite numbers",
        ),
    ],
)
def test_a_wrong_sum_gives_one_sentence(wrong, sentence):
    with pytest.raises(GirsanovError) as error:
        wrong()
    assert str(error.value) == sentence


def test_rewards_are_described_by_plain_data(tmp_path):
    (tmp_path / "mine.py").write_text("def fn(images, labels):\n    return [float(label) for label in labels]\n")
    data = {
        "kind": "sum",
        "parts": [
            "ink",
            {
                "kind": "pooled",
                "reward": f"{tmp_path}/mine.py:fn",
                "workers": {"kind": "threads", "count": 3},
                "on_failure": {"kind": "fallback", "score": -1.0},
                "retries": 1,
            },
        ],
        "weights": [2.0, 0.5],
    }
    problems = Problems()
    full = resolve(Reward, data, "reward", problems)
    assert problems.found == []
    reward = construct(Reward, full)
    images = torch.rand(6, 1, 8, 8)
    pooled = reward.parts[1]
    assert (pooled.workers, pooled.on_failure, pooled.retries) == (Threads(3), Fallback(-1.0), 1)
    expected = 2.0 * Ink()(images, ASK) + 0.5 * torch.arange(6.0)
    torch.testing.assert_close(reward(images, ASK), expected)
    wrong = {"kind": "sum", "parts": ["ink"], "weights": [1.0, 2.0]}
    resolve(Reward, wrong, "reward", problems)
    assert problems.found == [("reward", "is refused: 2 weights for 1 rewards: give one weight a reward")]


def test_a_reward_that_needs_settings_says_so():
    with pytest.raises(GirsanovError) as error:
        load_reward("sum")
    assert str(error.value) == (
        "the reward 'sum' needs parts: describe it in a configuration, as {kind: sum, parts: ...}"
    )


def test_the_example_of_the_page_on_rewards_builds(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    (tmp_path / "my_file.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    text = page.partition("```yaml\n")[2].partition("```")[0].replace("my_file.py", f"{tmp_path}/my_file.py")
    data, problems = yaml.safe_load(text), Problems()
    reward = construct(Reward, resolve(Reward, data["reward"], "reward", problems))
    assert problems.found == [] and names(reward) == ("bold", "fn")
    with reward.parts[1] as pooled:
        assert pooled.workers == Processes(4) and pooled.on_failure == Drop() and pooled.chunk == 8
    assert "rollout_micro_batch" in {f.name for f in dataclasses.fields(ClippedPG)} and data["method"].keys() == {
        "kind",
        "rollout_micro_batch",
    }
