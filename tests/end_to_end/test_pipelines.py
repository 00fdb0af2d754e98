"""Every family's tiny pipeline through rollout, ODE adjoint matching, a policy gradient, DiffusionNFT, and its adapters
saved and loaded by plain diffusers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from girsanov.adapters.base import Adapter
from girsanov.adapters.load import load_pipeline
from girsanov.adapters.text import PromptEncoder
from girsanov.adapters.weights import load_peft, save_weights, train_adapters
from girsanov.methods import METHODS
from girsanov.models import Guided
from girsanov.policy import Policy
from girsanov.prompts import ClassPrompts, TextPrompts
from girsanov.rewards import FunctionReward
from girsanov.rollout import rollout
from girsanov.samplers import GDDIM
from girsanov.train import Run, TrainConfig, iterate
from tests.equivalence.test_pipelines import CASES
from tests.pipelines import LINES, autoencoder, folder_of, sit_checkpoint

pytest.importorskip("peft")

SCALE = 2.0
FAMILIES = [*CASES, "dit", "sit"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.getbasetemp()


def opened(name: str, root: Path) -> Adapter:
    """A family's tiny pipeline, as a user would load it."""
    if name != "sit":
        return load_pipeline(folder_of(name, root), CASES[name].config if name in CASES else None)
    path, vae = root / "SiT-tiny.pt", root / "sit-vae"
    if not path.exists():
        autoencoder(scaling_factor=0.18215).save_pretrained(vae)
        sit_checkpoint(path)
    return load_pipeline(f"{path},{vae}")


def prompts_of(adapter: Adapter) -> Any:
    """A group of two for each of two prompts, with a null branch."""
    sizes = {"groups_per_batch": 2, "group_size": 2}
    if adapter.classes is not None:
        return ClassPrompts(num_classes=4, null_class=adapter.classes, **sizes)
    encode = PromptEncoder(adapter)
    encode.prepare([""], negative=True)
    encode.prepare(LINES[:2])
    return TextPrompts(texts=LINES[:2], encode=encode, encode_negative=encode.negative, negative="", **sizes)


def contrast(x: torch.Tensor, prompts: list[Any]) -> torch.Tensor:
    """Any smooth reward of pictures, videos and sounds."""
    return x.flatten(1).tanh().square().mean(1)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_tuned_and_its_adapters_load_in_diffusers(name: str, root: Path, tmp_path: Path) -> None:
    """One iteration of each method moves the adapters, with a ratio of 1; the saved weights draw the same, 1e-4."""
    adapter = opened(name, root)
    train_adapters(adapter, rank=2)
    policy, prompts, grid = Policy(adapter.model(), dict.fromkeys(("rollout", "train"), SCALE)), None, adapter.grid(2)
    prompts = prompts_of(adapter)
    reward = FunctionReward(contrast)
    config = TrainConfig(iterations=2, lr=0.05)
    for method in (
        METHODS["ode-am"](reward=reward, sampler=GDDIM(0.0), grid=grid, last=1),
        METHODS["clipped-pg"](reward=reward, sampler=GDDIM(1.0), grid=grid),
        METHODS["nft"](reward=reward, sampler=GDDIM(0.0), grid=grid),
    ):
        run = Run(policy, method, config, prompts)
        before = {n: w.clone() for n, w in policy.state().items()}
        metrics = iterate(run)
        moved = [n for n, w in policy.state().items() if not torch.equal(w, before[n])]
        assert moved and all("lora_" in n for n in moved), type(method).__name__
        assert metrics["grad_norm"] > 0
        assert metrics.get("ratio_max", 1.0) == metrics.get("ratio_min", 1.0) == 1.0
    line = save_weights(adapter, policy.state(), tmp_path)

    batch = prompts.batch(0)
    model = adapter.model()
    start = torch.randn(4, *model.shape, generator=torch.Generator().manual_seed(0))
    fresh = opened(name, root)
    if "load_lora_weights" in line:
        fresh.pipe.load_lora_weights(str(tmp_path))
    else:
        load_peft(fresh.network, tmp_path)
    drawn = []
    for one in (model, opened(name, root).model(), fresh.model()):
        with torch.no_grad():
            drawn.append(rollout(Guided(one, SCALE), GDDIM(0.0), grid, start, batch.cond).x0)
    assert float((drawn[0] - drawn[1]).norm() / drawn[1].norm()) > 1e-3, "tuning changed nothing"
    assert float((drawn[0] - drawn[2]).norm() / drawn[2].norm()) < 1e-4
