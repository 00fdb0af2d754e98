"""A device without float64: an iteration of every method on the stand-in of ``tests/narrow_device.py``.

A tiny float32 network (4 samples, 3 steps of sampling) goes through, with the numbers that the host gives to 2e-3: what
the host adds up in float64 is float32 there.
"""

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from girsanov import precision
from girsanov.cli import main
from girsanov.grids import Grid
from girsanov.items import simulate
from girsanov.methods import METHODS
from girsanov.methods.base import Method
from girsanov.policy import Policy
from girsanov.rewards import FunctionReward
from girsanov.samplers import Euler
from girsanov.train import PromptSource, Run, TrainConfig, iterate
from tests.laws.mutation import function_of, mutated_code
from tests.narrow_device import narrow, on_host
from tests.pipelines import LINES, folder_of
from tests.tiny import tiny_policy, tiny_prompts

SETTINGS: dict[str, dict[str, Any]] = {"online-dpo": {"rollout_grid": Grid.uniform(3)}}
ANCHORED = {"clipped-pg", "ctrl-ratio", "prdp"}
BOLD = FunctionReward(lambda x, prompts: x[:, 0] + 0.5 * x[:, 1], name="bold", differentiable=True)


def built(name: str) -> Method:
    """The method on three steps."""
    cls = METHODS[name]
    fields = cls.__dataclass_fields__  # type: ignore[attr-defined]
    asked: dict[str, Any] = {"reward": BOLD} if "reward" in fields else {}
    if "grid" in fields and "reward" in fields:
        asked["grid"] = Grid.uniform(8 if name.startswith("mix") else 3)
    return cls(**asked, **SETTINGS.get(name, {}))


def source(method: Method, policy: Policy) -> PromptSource:
    """Requests, or what an annotator made of samples of the untuned network."""
    if method.data == "prompts":
        return tiny_prompts(4)
    asked = tiny_prompts(8).batch(0, 0, 1).to(policy.device)
    with torch.no_grad():
        return simulate(
            method.data, policy.view("reference"), Euler(), Grid.uniform(4), BOLD, asked, batch_size=4, size=3
        )


def iterated(name: str, device: torch.device) -> dict[str, float]:
    """The metrics of an iteration; of two epochs where the old policy is then asked beforehand."""
    policy = tiny_policy(torch.float32)
    policy.net.to(device)
    policy = Policy(policy.model)
    method = built(name)
    config = TrainConfig(iterations=1, lr=1e-3, epochs=1 + (name in ANCHORED), ema=0.9)
    return iterate(Run(policy, method, config, source(method, policy)))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_without_float64(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No float64 tensor is made or moved there, and the metrics are those of the host."""
    with narrow() as device:
        found = iterated(name, device)
    monkeypatch.setattr("girsanov.noise.widest", lambda device: torch.float32)  # the same uniform numbers
    wanted = iterated(name, torch.device("cpu"))
    assert set(found) == set(wanted)
    for key, value in wanted.items():
        if not key.startswith(("time/", "speed/")):
            assert math.isclose(found[key], value, rel_tol=2e-3, abs_tol=2e-5), key


def test_the_stand_in_refuses_what_the_device_refuses() -> None:
    """float64 made, moved or promoted to; host tensors among its own, but as indices; and what it allows."""
    with narrow() as device:
        x, host = torch.ones(3, device=device), torch.zeros((), dtype=torch.float64)
        refused = (
            lambda: x.double(),
            lambda: torch.ones(2, dtype=torch.float64).to(device),
            lambda: torch.zeros(2, dtype=torch.float64, device=device),
            lambda: torch.tensor([1.0], dtype=torch.float64, device=device),
            lambda: x.sum() + host,  # two without dimensions: promoted
            lambda: torch.add(x, torch.ones(3)),
        )
        for attempt in refused:
            with pytest.raises((TypeError, RuntimeError), match=r"float64|same device|unsupported operand"):
                attempt()
        assert x.device.type == "mps" and (x + host).dtype == torch.float32
        assert (2 * x[torch.tensor([0, 2])]).cpu().tolist() == [2.0, 2.0] and float(x.sum()) == 3.0


@pytest.mark.parametrize("name", ["clipped-pg", "nft", "ctrl", "diffusion-dpo"])
def test_float64_there_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the rule of ``precision.widest`` is taken away, every family fails."""
    function = function_of(precision, "widest")
    monkeypatch.setattr(function, "__code__", mutated_code(function, "torch.float32 if", "torch.float64 if"))
    with narrow() as device, pytest.raises((TypeError, RuntimeError), match="float64|unsupported operand"):
        iterated(name, device)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["clipped-pg", "nft", "ode-am", "diffusion-dpo"])
def test_a_pipeline_goes_without_float64(
    method: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--device mps`` from the command line: rollout, losses, evaluation, path KL, checkpoint, report, weights."""
    pytest.importorskip("peft")
    model = folder_of("sd15", tmp_path_factory.getbasetemp())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIRSANOV_CACHE", str(tmp_path / "cache"))
    (tmp_path / "r.py").write_text("def fn(images, prompts):\n    return images[:, 0].mean((1, 2))\n")
    (tmp_path / "p.txt").write_text("\n".join(LINES[:4]))
    recipe = importlib.import_module("girsanov.recipes.pipelines")
    plain = recipe.opened

    def opened(config: Any) -> Any:
        with on_host():  # loaders use the meta device themselves
            return plain(config)

    monkeypatch.setattr(recipe, "opened", opened)
    small = ["samples=4", "batch=4", "steps=2", "kl_samples=2", "pictured=2", "groups=2", "group_size=2", "pairs=4"]
    small += ["method.grid.n=3", "pipeline.height=16", "pipeline.width=24", "train.iterations=1", "lora=2"]
    given = ["reward=r.py:fn", f"model={model}", "prompts=p.txt"]
    with narrow():
        assert main(["run", "text-to-image", "--method", method, *given, *small, "--device", "mps", "--out", "o"]) == 0
    assert (tmp_path / "o" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "kto", "grpo"])
def test_words_go_without_float64(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Language from the command line: pretraining, generation, losses, evaluation, report."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIRSANOV_CACHE", str(tmp_path / "cache"))
    with narrow():
        given = ["--method", method, "--device", "mps", "--out", "o", "train.iterations=1", "samples=16"]
        assert main(["run", "words", *given]) == 0
    assert (tmp_path / "o" / "report.html").is_file()
