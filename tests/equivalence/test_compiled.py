"""``compile: true`` changes how a network is computed, not what a run learns."""

from pathlib import Path
from typing import Any

import pytest
import torch

from girsanov.cli import main
from girsanov.compiling import compile_network
from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods import ClippedPG
from girsanov.methods.adjoint.ode import ODEAdjointMatching
from girsanov.methods.base import Method
from girsanov.problems import LinearReward
from girsanov.train import train
from tests.tiny import tiny_run

METHODS: dict[str, type[Method]] = {"policy gradient": ClippedPG, "adjoint": ODEAdjointMatching}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_compiled_run_has_the_weights_of_an_eager_one(name: str) -> None:
    """Float32, three iterations, current and averaged weights (views through ``functional_call``): 1e-5 absolute.

    The weights move by 1e-2 in these iterations; the reference has not moved at all.
    """
    method = METHODS[name](reward=LinearReward([1.0, 0.5]), grid=Grid.uniform(4))  # type: ignore[call-arg]
    eager = train(tiny_run(method, iterations=3, dtype=torch.float32))
    run = tiny_run(method, iterations=3, dtype=torch.float32)
    names = run.policy.names
    before = run.policy.state()
    before = {k: v.clone() for k, v in before.items()}
    compile_network(run.policy.net, torch.device("cpu"))
    compiled = train(run)
    assert compiled.policy.names == names
    for copy in ("current", "ema"):
        for key, w in eager.policy.state(copy).items():
            torch.testing.assert_close(compiled.policy.state(copy)[key], w, rtol=0, atol=1e-5)
    assert max((compiled.policy.state()[k] - v).abs().max() for k, v in before.items()) > 5e-3
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    prompts = run.prompts.batch(0, 0, 1).take(torch.arange(4))
    for view in ("reference", "current"):
        with torch.no_grad():
            both = [r.policy.view(view)(x, torch.tensor(0.5), prompts.cond) for r in (eager, compiled)]
        torch.testing.assert_close(both[0], both[1], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_run_of_the_command_line_can_be_resumed_without(tmp_path: Path, monkeypatch: Any) -> None:
    """The checkpoint of a compiled run is that of the network: an eager run goes on from it."""
    monkeypatch.chdir(tmp_path)
    small = ["train.iterations=2", "samples=64", "--device", "cpu", "--out", "run"]
    assert main(["run", "mixture", "compile=true", *small]) == 0
    assert main(["run", "mixture", "compile=false", "--resume", "train.iterations=3", *small[1:]]) == 0
    assert (tmp_path / "run" / "checkpoints" / "0000003").is_dir()


def test_a_device_that_is_not_served_is_told() -> None:
    with pytest.raises(GirsanovError, match="compile=true works on cpu and cuda, not on mps: leave it out"):
        compile_network(torch.nn.Linear(1, 1), torch.device("mps"))
