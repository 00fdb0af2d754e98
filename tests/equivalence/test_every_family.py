"""What holds for every family alike: low-rank adapters there and back, merged, scaled, one weight of them moved; every
weight tuned; activations recomputed; samples decoded in chunks; a run resumed.

One pass a family over its tiny pipeline (``tests/pipelines.py``). "Equal" is 1e-5 of the norm of two guided steps
(noise from seed 0) or of a gradient. Adapters are tried in every run of the tests, the rest for a few families in every
run and for all in the slow ones.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from girsanov.adapters.base import Adapter
from girsanov.adapters.latents import Decoder
from girsanov.adapters.weights import (
    merge_adapters,
    resume_adapters,
    save_weights,
    train_adapters,
    train_everything,
)
from girsanov.checkpoint import load, save
from girsanov.methods import METHODS
from girsanov.models import Guided
from girsanov.policy import Policy
from girsanov.rewards import FunctionReward
from girsanov.rollout import rollout
from girsanov.samplers import GDDIM
from girsanov.train import Run, TrainConfig, iterate
from tests.end_to_end.test_pipelines import FAMILIES, SCALE, contrast, opened, prompts_of

pytest.importorskip("peft")
diffusers = pytest.importorskip("diffusers")


def families(*quick: str) -> Any:
    """Runs a test over all families; those not named are slow."""
    marked = [f if f in quick else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
    return pytest.mark.parametrize("name", marked)


class Family:
    """A tiny pipeline, two samples to draw with it, and what they are asked to be."""

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.root = name, root
        self.adapter = opened(name, root)
        self.prompts = prompts_of(self.adapter)
        self.cond = self.prompts.batch(0).cond.take(torch.tensor([0, 2]))
        self.start = torch.randn(2, *self.adapter.shape, generator=torch.Generator().manual_seed(0))

    def fresh(self) -> Adapter:
        """The pipeline as it was saved."""
        return opened(self.name, self.root)

    @torch.no_grad()
    def drawn(self, model: Any) -> Tensor:
        """The latents of two guided steps."""
        return rollout(Guided(model, SCALE), GDDIM(0.0), self.adapter.grid(2), self.start, self.cond).x0

    def moved(self, adapter: Adapter, scale: float) -> Policy:
        """A policy whose trained weights have moved by noise of seed 3."""
        policy, g = Policy(adapter.model()), torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in policy.parameters():
                p.add_(scale * torch.randn(p.shape, generator=g))
        return policy


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.getbasetemp()


def apart(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).norm() / b.norm())


@families(*(f for f in FAMILIES if f != "sd2"))
def test_adapters_of_a_family(name: str, root: Path, tmp_path: Path) -> None:
    """Rank 2, alpha 3: saved, gone on with, scaled, one weight moved, merged."""
    family = Family(name, root)
    base = family.drawn(family.adapter.model())
    train_adapters(family.adapter, rank=2, alpha=3)
    policy = family.moved(family.adapter, 0.3)
    tuned, half = family.drawn(policy.view()), family.drawn(policy.view(strength=0.5))
    assert apart(tuned, base) > 1e-3 and apart(half, tuned) > 1e-4 and apart(half, base) > 1e-4
    line = save_weights(family.adapter, policy.state(), tmp_path / "full")

    again = family.fresh()  # published adapters are gone on with, the base is the reference
    resume_adapters(again, str(tmp_path / "full"))
    resumed = Policy(again.model())
    assert set(resumed.names) == set(policy.names)
    assert apart(family.drawn(resumed.view()), tuned) < 1e-5
    assert apart(family.drawn(resumed.view("reference")), base) < 1e-5

    changed = next(n for n in policy.names if "lora_B" in n)
    with torch.no_grad():  # one weight has an influence
        dict(again.net.named_parameters())[changed].view(-1)[0] += 1
    assert apart(family.drawn(again.model()), tuned) > 1e-5

    if "load_lora_weights" in line:  # diffusers scales them as the policy does
        plain = family.fresh()
        plain.pipe.load_lora_weights(str(tmp_path / "full"), adapter_name="tuned")
        plain.pipe.set_adapters("tuned", 0.5)
        assert apart(family.drawn(plain.model()), half) < 1e-5
    merge_adapters(family.adapter.network, 0.5)
    assert not any("lora" in n for n, _ in family.adapter.network.named_parameters())
    assert apart(family.drawn(family.adapter.model()), half) < 1e-5


@families("sana", "dit", "sit")
def test_every_weight_of_a_family(name: str, root: Path, tmp_path: Path) -> None:
    """Full fine-tuning: the saved component draws the same; the autoencoder and the text encoders have no gradient."""
    family = Family(name, root)
    adapter = family.adapter
    base = family.drawn(adapter.model())
    train_everything(adapter)
    policy = family.moved(adapter, 0.02)
    tuned = family.drawn(policy.view())
    assert apart(tuned, base) > 1e-3 and apart(family.drawn(policy.view("reference")), base) < 1e-5
    line = save_weights(adapter, policy.state(), tmp_path)
    other = family.fresh()
    if "from_pretrained" in line:
        kind = getattr(diffusers, type(adapter.network).__name__)
        other.network.load_state_dict(kind.from_pretrained(str(tmp_path)).state_dict())
    else:
        other.network.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert apart(family.drawn(other.model()), tuned) < 1e-5
    policy.view()(family.start, torch.tensor(0.5), family.cond).square().mean().backward()
    others = [
        m for m in adapter.pipe.components.values() if isinstance(m, torch.nn.Module) and m is not adapter.network
    ]
    assert others and all(not p.requires_grad and p.grad is None for m in others for p in m.parameters())
    assert sum(float(p.grad.abs().sum()) for p in policy.parameters() if p.grad is not None) > 0


def gradient(adapter: Adapter, family: Family) -> Tensor:
    """The gradient of a loss of the adapters at one time."""
    policy = family.moved(adapter, 0.3)
    policy.view()(family.start, torch.tensor(0.5), family.cond).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


@families("sd15", "flux", "sit")
def test_activations_of_a_family_may_be_recomputed(name: str, root: Path) -> None:
    """The gradient is the same, and some block did run again in the backward pass."""
    family = Family(name, root)
    train_adapters(family.adapter, rank=2)
    twin = copy.deepcopy(family.adapter.network)
    expected = gradient(family.adapter, family)
    family.adapter.network = family.adapter.net.network = twin
    twin.enable_gradient_checkpointing()
    calls = {"n": 0}
    watched = next(m for n, m in twin.named_modules() if n.endswith("lora_A.default"))
    watched.register_forward_hook(lambda *args: calls.update(n=calls["n"] + 1))
    found = gradient(family.adapter, family)
    assert calls["n"] == 2, "nothing was recomputed"
    assert apart(found, expected) < 1e-5


@families("sd15", "wan", "stable-audio")
def test_samples_of_a_family_are_decoded_in_chunks(name: str, root: Path) -> None:
    """One at a time or both at once: the same data, and the same gradient through the decoder."""
    family = Family(name, root)
    found = []
    for chunk in (1, 2):
        x = family.start.clone().requires_grad_()
        data = Decoder(family.adapter.pipe.vae, family.adapter.to_data, chunk)(x)
        (slope,) = torch.autograd.grad(data.square().mean(), x)
        found.append((data.detach(), slope))
    assert found[0][0].dtype == torch.float32 and not torch.allclose(found[0][0][0], found[0][0][1], rtol=1e-3)
    assert all(apart(a, b) < 1e-5 for a, b in zip(*found, strict=True))


@families("sit")
def test_a_run_of_a_family_is_resumed(name: str, root: Path, tmp_path: Path) -> None:
    """Two iterations of DiffusionNFT with averaged weights, at once or saved and loaded between them: to the bit."""
    family = Family(name, root)
    train_adapters(family.adapter, rank=2)
    first = {n: p.detach().clone() for n, p in family.adapter.network.named_parameters() if p.requires_grad}

    def new() -> Run:
        with torch.no_grad():
            for n, p in family.adapter.network.named_parameters():
                p.copy_(first.get(n, p))
        guidance = dict.fromkeys(("rollout", "train"), SCALE)
        grid = family.adapter.grid(2)
        method = METHODS["nft"](reward=FunctionReward(contrast), sampler=GDDIM(0.0), grid=grid)
        config = TrainConfig(iterations=2, lr=0.01, ema=0.5)
        return Run(Policy(family.adapter.model(), guidance), method, config, family.prompts)

    def step(run: Run) -> dict[str, float]:
        metrics = iterate(run)
        run.done += 1
        return {k: v for k, v in metrics.items() if not k.startswith(("time/", "speed/"))}

    run = new()
    step(run)
    path = save(run, tmp_path)
    expected = step(run)
    state = {k: {n: w.clone() for n, w in run.policy.state(k).items()} for k in ("current", "ema", "old")}
    other = new()
    load(other, path)
    assert step(other) == expected
    assert all(torch.equal(w, other.policy.state(k)[n]) for k, named in state.items() for n, w in named.items())
