"""The training loop's promises, for agents: any micro-batch, a resumed run, several processes give the same numbers."""

from pathlib import Path

import pytest
import torch

from girsanov.checkpoint import load, save
from girsanov.control import LQ
from girsanov.control.agents import CPG, CPPO, Agent
from girsanov.control.critics import Galerkin, LeastSquares, TemporalDifference
from girsanov.control.policies import AffineActor
from girsanov.control.rates import Generator, Regressed
from girsanov.methods.base import Turn
from girsanov.policy import Policy
from girsanov.prompts import ClassPrompts
from girsanov.train import Run, TrainConfig, iterate

ENV = LQ(dt=0.1)
SINGLE, SEVERAL = {"epochs": 1, "minibatches": 1}, {"epochs": 2, "minibatches": 2}
CASES: dict[str, tuple[dict[str, int], type[Agent], dict[str, object]]] = {
    "cpg, least squares": (SINGLE, CPG, {"critic": LeastSquares()}),
    "cpg, network": (SINGLE, CPG, {"critic": TemporalDifference(width=8)}),
    "cppo, galerkin": (SEVERAL, CPPO, {"critic": Galerkin(), "rate": Generator()}),
    "cppo, network, regressed": (SEVERAL, CPPO, {"critic": TemporalDifference(width=8), "rate": Regressed()}),
}


def new(name: str, **train: object) -> Run:
    """A run of 8 paths."""
    updates, kind, parts = CASES[name]
    policy = Policy(AffineActor(slope=((-0.3,),), offset=(-0.4,), std=0.5).build(ENV))
    config = TrainConfig(**{"iterations": 6, "lr": 0.02, "ema": 0.9, **updates, **train})
    return Run(
        policy, kind(environment=ENV, **parts), config, ClassPrompts(num_classes=1, groups_per_batch=8, group_size=1)
    )


def curve(run: Run, n: int) -> list[dict[str, float]]:
    """The metrics of n iterations, times left out."""
    rows = []
    for _ in range(n):
        rows.append({k: v for k, v in iterate(run).items() if not k.startswith(("time/", "speed/"))})
        run.done += 1
    return rows


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_goes_on_to_the_bit(name: str, tmp_path: Path) -> None:
    run = new(name)
    curve(run, 3)
    path = save(run, tmp_path)
    assert path is not None
    rest, other = curve(run, 3), new(name)
    load(other, path)
    assert other.done == 3 and curve(other, 3) == rest
    for one, two in zip(run.policy.parameters(), other.policy.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", CASES)
def test_micro_batches_change_nothing_but_rounding(name: str) -> None:
    whole, parts = new(name), new(name, micro_batch=2)
    a, b = curve(whole, 2), curve(parts, 2)
    assert len(a) == len(b)
    for one, two in zip(whole.policy.parameters(), parts.policy.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-9, rtol=1e-9)


def test_the_ratio_is_one_to_the_bit_at_the_first_pass() -> None:
    for name in ("cppo, galerkin", "cppo, network, regressed"):
        for row in curve(new(name), 2):
            assert row["first/ratio_min"] == row["first/ratio_max"] == 1.0


def test_a_path_depends_on_its_id_alone() -> None:
    """Half of the requests, as a second process would have them, are the same paths."""
    run, agent = new("cpg, least squares"), CPG(environment=ENV)
    prompts = ClassPrompts(num_classes=1, groups_per_batch=8, group_size=1)
    state = agent.setup(run.policy)
    with torch.no_grad():
        whole = agent.collect(run.policy, prompts.batch(0, 0, 1), state, Turn(0, 0))
        half = agent.collect(run.policy, prompts.batch(0, 1, 2), state, Turn(0, 0))
    torch.testing.assert_close(whole.x[4:], half.x, atol=0, rtol=1e-12)
    assert torch.equal(whole.weight[4:], half.weight)
