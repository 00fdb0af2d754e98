"""A network that runs out of memory above some number of samples: the run goes on with fewer at a time, to the same
numbers; where none fits, a sentence says what to lower."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from girsanov.callbacks import Checkpoints
from girsanov.errors import GirsanovError
from girsanov.folder import RunFolder
from girsanov.grids import Grid
from girsanov.methods import ClippedPG
from girsanov.methods.adjoint.ode import ODEAdjointMatching
from girsanov.methods.base import Method
from girsanov.policy import Policy
from girsanov.problems import LinearReward
from girsanov.train import Run, train
from tests.tiny import tiny_run


class Small(nn.Module):
    """A network with room for so many samples, fewer when a graph is built."""

    def __init__(self, inner: nn.Module, room: int, graph_room: int) -> None:
        super().__init__()
        self.inner, self.room, self.graph_room = inner, room, graph_room

    def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        if len(x) > (self.graph_room if torch.is_grad_enabled() else self.room):
            raise torch.OutOfMemoryError("no room")
        return self.inner(x, t, cond)


def policy_gradient() -> Method:
    return ClippedPG(reward=LinearReward([1.0, 0.5]), grid=Grid.uniform(4))


def adjoint() -> Method:
    return ODEAdjointMatching(reward=LinearReward([1.0, 0.5]), grid=Grid.uniform(4))


def crowded(method: Method, room: int, graph_room: int, **train: Any) -> Run:
    """A tiny run (16 samples) whose network has little room."""
    run = tiny_run(method, batch=16, iterations=3, ema=None, **train)
    net = Small(copy.deepcopy(run.policy.net), room, graph_room)
    return Run(Policy(dataclasses.replace(run.policy.model, net=net)), method, run.config, run.prompts)


def weights(run: Run) -> dict[str, Tensor]:
    return {k.removeprefix("inner."): v for k, v in run.policy.state().items()}


@pytest.mark.parametrize("updates", [{}, {"epochs": 2, "minibatches": 2}], ids=["one update", "four updates"])
def test_the_run_goes_on_with_less_at_a_time_to_the_same_weights(updates: dict[str, int], capsys: Any) -> None:
    """Room for 5 samples, 3 with a graph, of 16: float64, equal to 1e-12. It is told once, not in every iteration."""
    plain = train(tiny_run(policy_gradient(), batch=16, iterations=3, ema=None, **updates))
    small = train(crowded(policy_gradient(), 5, 3, **updates))
    for name, w in weights(plain).items():
        torch.testing.assert_close(weights(small)[name], w, rtol=1e-12, atol=1e-12)
    assert small.method.rollout_micro_batch == 4 and small.config.micro_batch == 2
    said = capsys.readouterr().out + capsys.readouterr().err
    assert said.count("samples are rolled out 4 at a time from here on") == 1
    assert said.count("micro-batches have 2 samples from here on") == 1


def test_the_first_ratios_are_one_after_micro_batches_were_halved(capsys: Any) -> None:
    """Old densities are those of the layout that is trained in, also when that changed in between."""
    found: list[dict[str, float]] = []

    class Keep:
        def start(self, run: Run) -> None: ...
        def iteration(self, run: Run, metrics: dict[str, float]) -> None:
            found.append(metrics)

        def end(self, run: Run) -> None: ...

    train(crowded(policy_gradient(), 16, 3, epochs=2), [Keep()])
    assert all(m["first/ratio_min"] == m["first/ratio_max"] == 1.0 for m in found) and len(found) == 3


def test_what_does_not_fit_at_all_is_told_with_what_to_lower(tmp_path: Path) -> None:
    """After the checkpoint of the start was written, so nothing is lost."""
    for room, graph_room, sentence in (
        (0, 16, "out of memory while one sample at a time is rolled out: make samples smaller"),
        (16, 0, "out of memory with one sample at a time: make samples smaller (pipeline.height and pipeline.width)"),
    ):
        folder = RunFolder(tmp_path / str(room))
        folder.checkpoints.mkdir(parents=True)
        with pytest.raises(GirsanovError, match="^" + sentence.replace("(", r"\(").replace(")", r"\)")):
            train(crowded(policy_gradient(), room, graph_room), [Checkpoints(folder, 1)])
        assert [p.name for p in folder.checkpoints.iterdir()] == ["0000000"]
    with pytest.raises(GirsanovError, match="out of memory while 16 samples are collected at once: lower groups"):
        train(crowded(adjoint(), 0, 0))
