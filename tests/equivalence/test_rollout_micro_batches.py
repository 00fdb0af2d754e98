"""Sampling in micro-batches and scoring in the background changes nothing but when things happen."""

import dataclasses
import threading
import time

import pytest
import torch

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.base import Turn
from girsanov.methods.online import WALK, sample_and_score
from girsanov.models import Model
from girsanov.processes import RectifiedFlow
from girsanov.prompts import ClassPrompts
from girsanov.rewards.combine import WeightedSum
from girsanov.rewards.function import FunctionReward
from girsanov.rewards.pool import Drop, PooledReward
from girsanov.rewards.workers import Threads
from girsanov.rollout import rollout
from girsanov.samplers.dpm_solver import DPMSolverPP2M
from girsanov.samplers.gddim import GDDIM
from girsanov.samplers.heun import Heun
from girsanov.samplers.mixed import Mixed

GRID = Grid.uniform(6)
PROMPTS = ClassPrompts(num_classes=5, groups_per_batch=5, group_size=2).batch(0)
TURN = Turn(3, 1)


def net(x, t, cond):
    return torch.tanh(x * t[:, None]) + cond["label"].to(x)[:, None]


MODEL = Model(net, RectifiedFlow(), "velocity", (3,))
X_T = TURN.noise(PROMPTS.ids).normal((3,), torch.float64)
SUMS = FunctionReward(lambda x, meta: x.sum(1) + torch.tensor(meta), "sums", differentiable=False)
SAMPLERS = {"gddim": GDDIM(1.0), "heun": Heun(), "2m": DPMSolverPP2M(), "mixed": Mixed(start=2, length=2)}


def tensors(value):
    """Every tensor of a record, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, tuple | dict):
        return [t for v in (value.values() if isinstance(value, dict) else value) for t in tensors(v)]
    if dataclasses.is_dataclass(value):
        return [t for f in dataclasses.fields(value) for t in tensors(getattr(value, f.name))]
    return []


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("micro_batch", [1, 3, 5, 10, None])
def test_micro_batches_give_the_same_trajectory_and_scores(sampler, micro_batch):
    whole = rollout(MODEL, sampler, GRID, X_T, PROMPTS.cond, noise=TURN.noise(PROMPTS.ids, WALK))
    path, pending = sample_and_score(MODEL, sampler, GRID, X_T, PROMPTS, SUMS, TURN, micro_batch=micro_batch)
    found, expected = tensors(path), tensors(whole)
    assert len(found) == len(expected) > 10
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    torch.testing.assert_close(pending.result(), SUMS(whole.x0, PROMPTS)[:, None], rtol=0, atol=1e-12)
    for before, after in zip(path.transitions, path.transitions[1:], strict=False):
        assert before.x_s is after.x_t  # stored once
    for tr in path:
        assert tr.stages[0].x is tr.x_t


def test_kept_steps_and_no_noise():
    path, _ = sample_and_score(MODEL, Heun(), GRID, X_T, PROMPTS, SUMS, TURN, keep=(1, 4), micro_batch=4)
    assert [tr.step.i for tr in path] == [1, 4] and all(len(tr.x_t) == 10 for tr in path)


def test_several_rewards_in_the_background_keep_the_order():
    def slow(x, meta):
        time.sleep(0.02 * (meta[0] % 3))
        return [float("nan") if m == 4 else float(m) for m in meta]

    with PooledReward(slow, workers=Threads(3), on_failure=Drop()) as pooled:
        both = WeightedSum([SUMS, pooled])
        path, pending = sample_and_score(MODEL, GDDIM(1.0), GRID, X_T, PROMPTS, both, TURN, micro_batch=2)
        scores = pending.result()
    labels = PROMPTS.cond["label"].double()
    torch.testing.assert_close(scores[:, 0], path.x0.sum(1) + labels, rtol=0, atol=1e-12)
    assert torch.equal(scores[:, 1].isnan(), labels == 4)
    assert torch.equal(scores[labels != 4, 1], labels[labels != 4])


def test_a_reward_is_at_work_while_the_next_micro_batch_is_sampled():
    labels = PROMPTS.cond["label"][::2].tolist()
    asked = {label: threading.Event() for label in labels}
    following = dict(zip(labels, labels[1:], strict=False))

    def watched(x, t, cond):
        asked[int(cond["label"][0])].set()
        return x * 0

    def waits_for_the_next(x, meta):
        """1 if the network is asked for the next micro-batch before this one is scored."""
        if meta[0] not in following:
            return [1.0] * len(x)
        return [float(asked[following[meta[0]]].wait(10))] * len(x)

    model = Model(watched, RectifiedFlow(), "velocity", (3,))
    with PooledReward(waits_for_the_next, workers=Threads(1)) as pooled:
        _, pending = sample_and_score(model, GDDIM(1.0), GRID, X_T, PROMPTS, pooled, TURN, micro_batch=2)
        assert pending.result().tolist() == [[1.0]] * 10


def test_a_wrong_size_gives_one_sentence():
    with pytest.raises(GirsanovError) as error:
        sample_and_score(MODEL, Heun(), GRID, X_T, PROMPTS, SUMS, TURN, micro_batch=0)
    assert str(error.value) == "rollout_micro_batch = 0 must be at least 1, or None for the whole batch"
