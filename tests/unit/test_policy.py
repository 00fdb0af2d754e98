"""Views of a policy: what they share, where gradients go, and that nothing of one view leaks into another."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from girsanov.adapters import lora
from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.adjoint.ode import ODEAdjointMatching
from girsanov.methods.base import Turn
from girsanov.models import Guided, Model
from girsanov.nets import MLPConfig
from girsanov.policy import Policy, trainable_copy
from girsanov.processes import RectifiedFlow
from girsanov.rewards.base import Reward
from girsanov.types import Cond, Prompts

X, T = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor(0.3, dtype=torch.float64)


def moved(policy: Policy, seed: int = 1, size: float = 0.2) -> Policy:
    """The policy with its trainable weights moved at random (also those that start at zero)."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(size * torch.randn(p.shape, generator=g))
    return policy


def plain(seed: int = 0) -> Model:
    """A small MLP whose last layer is not at zero."""
    net = MLPConfig(shape=(4,), width=16, blocks=2, embed=8).build(seed)
    with torch.no_grad():
        net.outlet.weight.normal_(generator=torch.Generator().manual_seed(7))
    return Model(net, RectifiedFlow(), "velocity", (4,))


def add_lora(model: Model, **parts) -> Model:
    """The model, adapted."""
    lora.add_lora(model.net, **parts)
    return model


def make(kind: str) -> tuple[Policy, Model]:
    """A policy and an untouched copy of the model it started from."""
    model = plain()
    start = dataclasses.replace(model, net=copy.deepcopy(model.net))
    if kind != "full":
        model = add_lora(model, rank=2, targets=["inner", "film"])
    if kind == "mixed":
        model.net.outlet.get_parameter("bias").requires_grad_(True)
    return Policy(model), start


KINDS = ["full", "lora", "mixed"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_stays_the_start_to_the_bit(kind: str) -> None:
    policy, start = make(kind)
    with torch.no_grad():
        assert torch.equal(policy.view()(X, T), start(X, T))
        moved(policy)
        assert torch.equal(policy.view("reference")(X, T), start(X, T))
        assert torch.equal(policy.view(strength=0.0)(X, T), start(X, T))
        assert not torch.allclose(policy.view()(X, T), start(X, T))


def test_adapters_hold_few_weights_and_no_second_copy() -> None:
    policy, start = make("lora")
    assert policy.weights.reference == {}
    total = sum(p.numel() for p in start.net.parameters())
    assert all("lora_" in name for name in policy.names)
    assert sum(p.numel() for p in policy.parameters()) < 0.35 * total
    assert all(not p.requires_grad for n, p in policy.net.named_parameters() if "lora_" not in n)
    assert set(make("mixed")[0].weights.reference) == {"outlet.bias"}


def test_strength_scales_the_tuning() -> None:
    """Full weights: the line from reference to tuned. LoRA: the weights with c B A merged by hand."""
    policy, start = make("full")
    moved(policy)
    line = copy.deepcopy(start.net)
    with torch.no_grad():
        for p, q in zip(line.parameters(), policy.net.parameters(), strict=True):
            p.lerp_(q, 0.4)
        assert torch.allclose(policy.view(strength=0.4)(X, T), dataclasses.replace(start, net=line)(X, T), atol=1e-6)
        assert torch.equal(policy.view(strength=1.0)(X, T), policy.view()(X, T))
    policy, start = make("lora")
    moved(policy)
    merged = copy.deepcopy(start.net)
    weights = dict(policy.net.named_parameters())
    with torch.no_grad():
        for name, p in merged.named_parameters():
            root = name.removesuffix(".weight")
            if f"{root}.lora_A.default.weight" in weights:
                p += 1.7 * weights[f"{root}.lora_B.default.weight"] @ weights[f"{root}.lora_A.default.weight"]
        found, wanted = policy.view(strength=1.7)(X, T), dataclasses.replace(start, net=merged)(X, T)
        assert torch.allclose(found, wanted, atol=1e-5) and not torch.allclose(found, policy.view()(X, T), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_views_mix_in_one_graph(kind: str) -> None:
    """A product of three views: its gradient is that of the current one alone, at the values of the others."""
    policy, _ = make(kind)
    policy.keep_copy("ema")
    moved(policy)
    policy.move_copy("ema", 0.5)
    names = ("current", "reference", "ema")
    with torch.no_grad():
        fixed = [policy.view(name)(X, T) for name in names]
    current, reference, ema = (policy.view(name)(X, T) for name in names)
    assert not reference.requires_grad and not ema.requires_grad
    found = torch.autograd.grad((current * reference * ema).sum(), policy.parameters())
    wanted = torch.autograd.grad((policy.view()(X, T) * fixed[1] * fixed[2]).sum(), policy.parameters())
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    with torch.no_grad():
        assert all(torch.equal(policy.view(n)(X, T), v) for n, v in zip(names, fixed, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_views_mix_under_checkpointing(kind: str) -> None:
    """Recomputed passes use the weights of their own view, also for the gradient in x."""
    policy, _ = make(kind)
    moved(policy)

    def chain(run) -> list[Tensor]:
        x = X.clone().requires_grad_(True)
        y = run(policy.view("reference"), x)
        z = run(policy.view(), y) + run(policy.view("reference"), y).sin()
        return list(torch.autograd.grad(run(policy.view(strength=0.5), z).square().sum(), [x, *policy.parameters()]))

    stored = chain(lambda model, x: model(x, T))
    recomputed = chain(lambda model, x: checkpoint(model, x, T, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(stored, recomputed, strict=True))


class Blocks(nn.Module):
    """Checkpoints its blocks, as diffusers' networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.gradient_checkpointing = nn.ModuleList(nn.Linear(4, 4) for _ in range(3)), True

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = checkpoint(lambda y, b=block: torch.tanh(b(y)), x, use_reentrant=False)
            else:
                x = torch.tanh(block(x))
        return x


def test_a_network_that_checkpoints_inside_gives_the_gradient_of_the_view() -> None:
    torch.manual_seed(0)
    policy = Policy(Model(Blocks(), RectifiedFlow(), "velocity", (4,)))
    start = copy.deepcopy(policy.net)
    moved(policy)
    x = X.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(policy.view("reference")(x, T).square().sum(), x)
    (wanted,) = torch.autograd.grad(start(x, torch.zeros(5)).square().sum(), x)
    assert torch.equal(found, wanted)
    assert policy.net.gradient_checkpointing is True


def test_strength_and_its_gradient_reach_the_current_weights() -> None:
    policy, _ = make("full")
    moved(policy)
    found = torch.autograd.grad(policy.view(strength=0.25)(X, T).sum(), policy.parameters())
    half = Policy(dataclasses.replace(policy.model, net=copy.deepcopy(policy.net)))
    half.load("current", {n: torch.lerp(policy.weights.reference[n], w, 0.25) for n, w in policy.state().items()})
    wanted = torch.autograd.grad(half.view()(X, T).sum(), half.parameters())
    assert all(torch.allclose(a, 0.25 * b, atol=1e-5) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_moving_copies_average_and_states_come_back(kind: str) -> None:
    policy, _ = make(kind)
    policy.keep_copy("ema")
    first = {n: w.clone() for n, w in policy.state().items()}
    moved(policy)
    policy.move_copy("ema", 0.9)
    for name, w in policy.state("ema").items():
        assert torch.allclose(w, 0.9 * first[name] + 0.1 * policy.state()[name], atol=1e-6)
    saved = {name: {n: w.clone() for n, w in policy.state(name).items()} for name in ("current", "ema")}
    with torch.no_grad():
        outputs = [policy.view(name)(X, T) for name in ("current", "ema")]
    other, _ = make(kind)
    for name, weights in saved.items():
        other.load(name, weights)
    with torch.no_grad():
        assert all(torch.equal(other.view(n)(X, T), y) for n, y in zip(("current", "ema"), outputs, strict=True))
    assert all(p.requires_grad for p in other.parameters())


def test_a_copy_is_no_alias_of_the_current_weights() -> None:
    policy, _ = make("full")
    policy.keep_copy("old")
    before = {n: w.clone() for n, w in policy.state("old").items()}
    moved(policy)
    assert all(torch.equal(w, before[n]) for n, w in policy.state("old").items())


def test_dropout_is_off_so_that_a_pass_is_a_function() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    assert not Policy(Model(net, RectifiedFlow(), "velocity", (4,))).net.training
    assert not net[1].training


def test_guidance_is_picked_by_use() -> None:
    policy = Policy(plain(), {"rollout": 3.0, "train": 1.0})
    assert isinstance(policy.view("current", "rollout"), Guided)
    assert isinstance(policy.view("reference", "rollout"), Guided)
    assert not isinstance(policy.view("current", "train"), Guided)
    assert not isinstance(policy.view("current", "adjoint"), Guided)


def test_a_trainable_copy_is_another_network() -> None:
    model = plain()
    model.net.requires_grad_(False)
    twin = trainable_copy(model)
    assert all(p.requires_grad for p in twin.net.parameters())
    assert not any(p.requires_grad for p in model.net.parameters())
    assert {id(p) for p in twin.net.parameters()}.isdisjoint(id(p) for p in model.net.parameters())


def test_mistakes_are_told() -> None:
    policy, _ = make("full")
    with pytest.raises(GirsanovError, match="the policy has no view 'ema': it has current, reference"):
        policy.view("ema")
    with pytest.raises(GirsanovError, match="guidance is set for rollout, adjoint, train, not for sampling"):
        Policy(plain(), {"sampling": 2.0})
    with pytest.raises(GirsanovError, match="a view is used for rollout, adjoint, train, not for training"):
        policy.view("current", "training")
    with pytest.raises(GirsanovError, match="their parameter names differ"):
        policy.load("current", {"w": X})
    with pytest.raises(GirsanovError, match=r"inlet.bias has another shape"):
        policy.load("current", {n: (w[:1] if n == "inlet.bias" else w) for n, w in policy.state().items()})
    model = plain()
    model.net.requires_grad_(False)
    with pytest.raises(GirsanovError, match="no parameter requires a gradient: unfreeze the network or add adapters"):
        Policy(model)
    with pytest.raises(GirsanovError, match=r"a policy tunes the parameters of a torch.nn.Module"):
        Policy(dataclasses.replace(model, net=lambda x, t, cond: x))


def test_adapters_refuse_what_they_cannot_fit() -> None:
    with pytest.raises(GirsanovError, match="no linear layer is called nowhere: there are embedding.time.1, "):
        add_lora(plain(), targets=["nowhere"])
    with pytest.raises(GirsanovError, match="has adapters already"):
        add_lora(add_lora(plain()))
    with pytest.raises(GirsanovError, match="rank of an adapter must be at least 1, not 0"):
        add_lora(plain(), rank=0)
    with pytest.raises(GirsanovError, match="there are none"):
        add_lora(Model(nn.Flatten(), RectifiedFlow(), "velocity", (4,)))


def test_adapters_of_a_seed_and_a_scale() -> None:
    def after(**parts) -> Tensor:
        policy = Policy(add_lora(plain(), rank=2, **parts))
        with torch.no_grad():
            for name, p in zip(policy.names, policy.parameters(), strict=True):
                if "lora_B" in name:
                    p.fill_(0.1)
            return policy.view()(X, T)

    assert torch.equal(after(seed=3), after(seed=3)) and not torch.equal(after(seed=3), after(seed=4))
    assert torch.equal(after(), after(alpha=2)) and not torch.equal(after(), after(alpha=4))
    before = torch.random.get_rng_state()
    add_lora(plain())
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_float64_network_keeps_its_dtype() -> None:
    model = plain()
    policy = Policy(add_lora(dataclasses.replace(model, net=model.net.double())))
    assert policy.dtype == torch.float64 and all(p.dtype == torch.float64 for p in policy.parameters())
    assert policy.view()(X.double(), T).dtype == torch.float64


class Bold(Reward):
    name, differentiable = "bold", True

    def __call__(self, x: Tensor, prompts: object) -> Tensor:
        return torch.tanh(x).sum(1)


@pytest.mark.parametrize("kind", KINDS)
def test_adjoint_methods_read_the_reference(kind: str) -> None:
    """With adapters moved away from zero the targets still hold the velocities of the untouched network."""
    policy, start = make(kind)
    moved(policy)
    index = torch.arange(5)
    prompts = Prompts(Cond({}, torch.zeros_like(index)), index, index)
    method = ODEAdjointMatching(reward=Bold(), grid=Grid.uniform(3))
    batch = method.collect(policy, prompts, {}, Turn(0, 0))
    for target in batch.targets:
        with torch.no_grad():
            assert torch.equal(target.reference, start(target.x, target.t, prompts.cond))
    for chunk in method.losses(policy, batch, {}):
        chunk.loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in policy.parameters())
    assert all(p.grad is None for n, p in policy.net.named_parameters() if n not in policy.names)
