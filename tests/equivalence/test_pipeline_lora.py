"""Low-rank adapters and full weights of pipelines: what is written is what plain diffusers reads, image for image."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from girsanov.adapters.load import load_pipeline
from girsanov.adapters.weights import merge_adapters, resume_adapters, save_weights, train_adapters, train_everything
from girsanov.errors import GirsanovError
from girsanov.models import Guided
from girsanov.noise import Noise
from girsanov.policy import Policy
from girsanov.rollout import replay, rollout
from girsanov.samplers import GDDIM
from tests.equivalence.test_pipelines import CASES, SCALE, Pair, close
from tests.pipelines import folder_of

pytest.importorskip("peft")
STEPS = 3
FIRST = ("sd15",)  # the others save and load in tests/end_to_end/test_pipelines.py as well


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.getbasetemp()


def tuned(pair: Pair, scale: float = 0.3) -> Policy:
    """A policy whose trained parameters have moved: noise of seed 3 on all of them."""
    policy = Policy(pair.adapter.model())
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g))
    return policy


def ours(pair: Pair, policy: Policy, strength: float = 1.0, name: str = "current") -> Tensor:
    """What the policy's view draws, guided."""
    model = Guided(policy.view(name, strength=strength), SCALE)
    with torch.no_grad():
        return rollout(model, pair.adapter.sampler(), pair.adapter.grid(STEPS), pair.start, pair.cond).x0


def pair_of(name: str, root: Any) -> Pair:
    return Pair(name, root, CASES[name].schedulers[0] if CASES[name].schedulers else None)


@pytest.mark.parametrize("name", [c if c in FIRST else pytest.param(c, marks=pytest.mark.slow) for c in CASES])
def test_saved_adapters_give_the_same_latents_in_plain_diffusers(name: str, root: Any, tmp_path: Path) -> None:
    """Rank 3, alpha 5: 1e-4. One weight moved by 1 changes them; strength 0.5 is half of B A."""
    pair = pair_of(name, root)
    if not hasattr(pair.pipe, "load_lora_weights"):
        pytest.skip("no load_lora_weights in this pipeline: see the test of peft's layout")
    train_adapters(pair.adapter, rank=3, alpha=5)
    policy = tuned(pair)
    drawn = ours(pair, policy)
    line = save_weights(pair.adapter, policy.state(), tmp_path / "full")
    save_weights(pair.adapter, policy.state(), tmp_path / "half", strength=0.5)
    moved = dict(policy.state())
    changed = next(n for n in moved if "lora_B" in n)
    moved[changed] = moved[changed].clone()
    moved[changed].view(-1)[0] += 1
    save_weights(pair.adapter, moved, tmp_path / "moved")

    fresh = pair_of(name, root)
    plain = fresh.case.layout(fresh.run(STEPS), fresh.adapter)
    assert line == f"pipe.load_lora_weights({str(tmp_path / 'full')!r})"
    fresh.pipe.load_lora_weights(str(tmp_path / "full"))
    loaded = fresh.case.layout(fresh.run(STEPS), fresh.adapter)
    close(drawn, loaded, 1e-4)
    assert float((plain - loaded).norm() / plain.norm()) > 1e-2
    fresh.pipe.unload_lora_weights()
    fresh.pipe.load_lora_weights(str(tmp_path / "half"))
    close(ours(pair, policy, 0.5), fresh.case.layout(fresh.run(STEPS), fresh.adapter), 1e-4)
    fresh.pipe.unload_lora_weights()
    fresh.pipe.load_lora_weights(str(tmp_path / "moved"))
    other = fresh.case.layout(fresh.run(STEPS), fresh.adapter)
    assert float((other - loaded).norm() / loaded.norm()) > 1e-3, f"{changed} has no influence"


def test_published_adapters_are_trained_on(root: Any, tmp_path: Path) -> None:
    """The same function after saving and loading, all of them trainable, the base as reference."""
    pair = pair_of("sd15", root)
    train_adapters(pair.adapter, rank=3, alpha=5)
    policy = tuned(pair)
    drawn, base = ours(pair, policy), ours(pair, policy, name="reference")
    save_weights(pair.adapter, policy.state(), tmp_path)
    fresh = pair_of("sd15", root)
    resume_adapters(fresh.adapter, str(tmp_path))
    again = Policy(fresh.adapter.model())
    assert set(again.names) == set(policy.names) and all(p.dtype == torch.float32 for p in again.parameters())
    close(ours(fresh, again), drawn, 1e-5)
    close(ours(fresh, again, name="reference"), base, 1e-6)


@pytest.mark.parametrize("strength", [pytest.param(1.0, marks=pytest.mark.slow), 0.4])
def test_merged_weights_are_the_adapted_network(root: Any, strength: float) -> None:
    """Without adapters afterwards, and ready for new ones."""
    pair = pair_of("sd15", root)
    train_adapters(pair.adapter, rank=3, alpha=5)
    policy = tuned(pair)
    drawn = ours(pair, policy, strength)
    merge_adapters(pair.adapter.network, strength)
    assert not any("lora" in n for n, _ in pair.adapter.network.named_parameters())
    close(pair.case.layout(pair.run(STEPS), pair.adapter), drawn, 1e-4)
    train_adapters(pair.adapter, rank=2)
    close(ours(pair, Policy(pair.adapter.model()), name="reference"), drawn, 1e-4)


def test_full_weights_are_a_component_of_diffusers(root: Any, tmp_path: Path) -> None:
    import diffusers

    pair = pair_of("sd15", root)
    train_everything(pair.adapter)
    policy = tuned(pair, 0.02)
    drawn = ours(pair, policy)
    weights = {name: w.clone() for name, w in policy.state().items()}
    with torch.no_grad():  # averaged weights are written too: what is given counts, not what the network holds
        for p in policy.parameters():
            p.zero_()
    line = save_weights(pair.adapter, weights, tmp_path)
    fresh = pair_of("sd15", root)
    assert line.startswith("pipe.unet = diffusers.UNet2DConditionModel.from_pretrained(")
    fresh.pipe.unet = diffusers.UNet2DConditionModel.from_pretrained(str(tmp_path))
    close(drawn, fresh.run(STEPS), 1e-4)


def test_only_the_component_is_trained(root: Any) -> None:
    """Text encoder and autoencoder stay frozen, with adapters and without."""
    for prepare in (train_adapters, train_everything):
        pair = pair_of("sd15", root)
        prepare(pair.adapter)
        frozen = [*pair.pipe.vae.parameters(), *pair.pipe.text_encoder.parameters()]
        assert not any(p.requires_grad for p in frozen)
        x = pair.start.clone()
        loss = pair.model.decode(pair.model(x, torch.tensor(0.5), pair.cond)).square().mean()
        loss.backward()
        assert all(p.grad is None for p in frozen)
        trained = [p for p in pair.adapter.network.parameters() if p.requires_grad]
        assert any(p.grad is not None and bool(p.grad.abs().max() > 0) for p in trained)


def test_adapters_of_another_network_are_refused(root: Any, tmp_path: Path) -> None:
    pair = pair_of("sd3", root)
    train_adapters(pair.adapter)
    save_weights(pair.adapter, Policy(pair.adapter.model()).state(), tmp_path / "sd3")
    other = load_pipeline(folder_of("sd15", root))
    with pytest.raises(GirsanovError, match="holds no low-rank adapters for"):
        resume_adapters(other, str(tmp_path / "sd3"))
    with pytest.raises(GirsanovError, match="holds no low-rank adapters for"):
        resume_adapters(other, str(tmp_path / "nothing"))


def test_checkpointing_inside_the_network_changes_no_gradient(root: Any) -> None:
    """With every block recomputed, the gradient of the adapters is the same to 1e-6."""
    found = []
    for checkpointing in (False, True):
        pair = pair_of("sd3", root)
        pair.adapter = type(pair.adapter)(pair.pipe, type(pair.case.config)(height=16, width=24, tokens=20))
        if checkpointing:
            pair.adapter.network.enable_gradient_checkpointing()
        train_adapters(pair.adapter, rank=3)
        policy = tuned(pair)
        v = policy.view("current")(pair.start, torch.tensor(0.5), pair.cond)
        with torch.no_grad():
            anchor = policy.view("reference")(pair.start, torch.tensor(0.5), pair.cond)
        (v - anchor).square().mean().backward()
        assert (
            any(
                m.gradient_checkpointing for m in pair.adapter.network.modules() if hasattr(m, "gradient_checkpointing")
            )
            is checkpointing
        )
        found.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    close(found[1], found[0], 1e-6)


@pytest.mark.parametrize("name", ["sd15", "flux2-klein"])
def test_networks_in_bf16_step_in_float32(name: str, root: Any) -> None:
    """Frozen weights in bf16; adapters, states, means and log-probs in float32; a ratio of 1 at first; 3 % of float32.

    The prediction of a bf16 network (8 bits of mantissa, a dozen layers) is held to 3 % of the float32 one's norm.
    """
    exact = pair_of(name, root)
    half = load_pipeline(folder_of(name, root), CASES[name].config, dtype=torch.bfloat16)
    train_adapters(half, rank=2)
    policy = Policy(half.model())
    frozen = {p.dtype for p in half.network.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16} and {p.dtype for p in policy.parameters()} == {torch.float32}
    seen: list[torch.dtype] = []
    hook = half.network.register_forward_hook(lambda module, args, out: seen.append(out[0].dtype))
    x, t = exact.start, exact.adapter.grid(3).ts[1]
    with torch.no_grad():
        close(policy.view()(x, t, exact.cond), exact.model(x, t, exact.cond), 3e-2)
    hook.remove()
    assert seen == [torch.bfloat16]
    grid = half.grid(3)
    with torch.no_grad():
        path = rollout(policy.view(), GDDIM(1.0), grid, x, exact.cond, noise=Noise(0, 0, torch.arange(2)))
    for tr, kernel in replay(policy.view(), GDDIM(1.0), path):
        assert tr.x_s.dtype == tr.mean.dtype == kernel.mean.dtype == torch.float32
        if tr.stochastic:
            ratio = kernel.log_ratio(tr.mean, tr.x_s)
            assert ratio.dtype == torch.float64 and not ratio.detach().any()
    kernel.mean.sum().backward()
    grads = [p.grad for p in policy.parameters() if p.grad is not None]
    assert any(bool(g.abs().max() > 0) for g in grads) and {g.dtype for g in grads} == {torch.float32}
