"""Every preference method with low-rank adapters, on a toy network and on tiny pipelines of diffusers (eps, flow)."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from girsanov.adapters.load import load_pipeline
from girsanov.adapters.lora import add_lora
from girsanov.adapters.weights import train_adapters
from girsanov.grids import Grid
from girsanov.items import Items
from girsanov.methods import METHODS
from girsanov.methods.base import Method
from girsanov.methods.preference.noised import Seen
from girsanov.models import Model
from girsanov.nets import MLPConfig
from girsanov.pairs import Pairs
from girsanov.policy import Policy
from girsanov.processes import RectifiedFlow
from girsanov.rewards.base import Reward
from girsanov.train import Run, TrainConfig, iterate
from girsanov.types import Cond, Prompts
from tests.pipelines import folder_of

pytest.importorskip("peft")
FAMILY = [name for name, cls in METHODS.items() if cls.__module__.startswith("girsanov.methods.preference.")]
B, LOG2 = 4, math.log(2)


@dataclass
class Place:
    """Where methods are tried: a policy with fresh adapters, conditions of B samples, times of a rollout."""

    policy: Policy
    cond: Cond
    grid: Grid
    drawn: tuple[int, ...]
    fresh: dict[str, Tensor]


def toy(root: Any) -> Place:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLPConfig(shape=(2,), classes=2, width=16, blocks=1, embed=8).build(0)
        for p in net.parameters():
            p.data.add_(0.1 * torch.randn(p.shape))
    add_lora(net, rank=2)
    index = torch.arange(B) % 2
    cond = Cond({"label": torch.arange(2)}, index, Cond({"label": torch.tensor([2])}, 0 * index))
    policy = Policy(Model(net, RectifiedFlow(), "velocity", (2,)), {"rollout": 2.0})
    return Place(policy, cond, Grid.uniform(4), (2,), policy.state())


def pipeline(name: str, root: Any) -> Place:
    pytest.importorskip("diffusers")
    adapter = load_pipeline(folder_of(name, root))
    train_adapters(adapter, rank=2)
    index = torch.arange(B) % 2
    tables = [{k: torch.stack([r[k] for r in rows]) for k in rows[0]} for rows in embedded(adapter)]
    cond = Cond(tables[0], index, Cond(tables[1], 0 * index))
    policy = Policy(adapter.model(), {"rollout": 3.0})
    with torch.no_grad():
        drawn = policy.model.decode(torch.zeros(1, *adapter.shape)).shape[1:]
    return Place(policy, cond, adapter.grid(3), tuple(drawn), policy.state())


def embedded(adapter: Any) -> list[list[dict[str, Tensor]]]:
    with torch.no_grad():
        return [adapter.embed(t, bool(n), torch.device("cpu")) for n, t in enumerate((["a red fox", "rain"], [""]))]


PLACES: dict[str, Callable[[Any], Place]] = {
    "toy": toy,
    "sd15": lambda root: pipeline("sd15", root),
    "sd3": lambda root: pipeline("sd3", root),
}


@pytest.fixture(scope="module", params=["toy", "sd15", pytest.param("sd3", marks=pytest.mark.slow)])
def place(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = PLACES[request.param](tmp_path_factory.getbasetemp())
    made.fresh = {k: v.clone() for k, v in made.fresh.items()}
    return made


class Mean(Reward):
    """The mean of a sample; keeps the shapes that it was shown."""

    name, differentiable = "mean", False

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        self.seen.append(tuple(x.shape))
        return x.flatten(1).mean(1)


class Asked:
    """Two groups of two in every iteration."""

    def __init__(self, cond: Cond) -> None:
        self.cond = cond

    def batch(self, iteration: int, rank: int, world_size: int) -> Prompts:
        return Prompts(self.cond, torch.arange(B), torch.arange(B) // 2)


def source(kind: str, place: Place) -> Any:
    """What a method learns from: random states, seed 1."""
    x = torch.randn(B, 3, *place.policy.model.shape, generator=torch.Generator().manual_seed(1))
    if kind == "pairs":
        return Pairs(place.cond, x[:, 0], x[:, 1], B)
    if kind == "labels":
        return Items(place.cond, x[:, :1], sign=torch.tensor([[1.0], [-1.0], [-1.0], [1.0]]), batch_size=B)
    if kind == "lists":
        return Items(place.cond, x, score=torch.tensor([[1.0, 0.2, -0.5]] * B), batch_size=B)
    return Asked(place.cond)


def made(name: str, place: Place, reward: Mean) -> Method:
    """The method with its defaults, on the place's times."""
    takes = inspect.signature(METHODS[name]).parameters
    parts: dict[str, Any] = {"reward": reward} if "reward" in takes else {}
    parts |= {k: place.grid for k in ("rollout_grid", "grid") if k in takes and "reward" in takes}
    return METHODS[name](**parts | ({"threshold": 0.0, "skip": 0.0} if name == "spo" else {}))


# ---- what the loss is at the reference


def looked(place: Place, batch: Any) -> Seen:
    with torch.no_grad():
        return batch.draws[0].look(place.policy.view("reference", "train"), batch.cond)


def winners(place: Place, batch: Any) -> float:
    return float(looked(place, batch).error[:, 0].mean()) / math.prod(place.policy.model.shape)


def mapo(place: Place, method: Any, batch: Any) -> float:
    e = looked(place, batch).error / math.prod(place.policy.model.shape)
    phi = (method.scale * e) / torch.expm1(method.scale * e)
    return float((e[:, 0] - method.beta * logsigmoid(1000 * (phi[:, 0] - phi[:, 1]))).mean())


def rank(place: Place, method: Any, batch: Any) -> float:
    s, total = batch.score[0].double(), 0.0
    psi = [sum(float(torch.sigmoid(s[i] - s[j])) for j in range(3) if j != i) / 2 for i in range(3)]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        total += abs(2 ** psi[i] - 2 ** psi[j]) * abs(1 / math.log(2 + i) - 1 / math.log(2 + j)) * LOG2
    return total


def weighted(place: Place, method: Any, batch: Any) -> float:
    model, total = place.policy.view("reference", "train"), 0.0
    for draw in batch.draws:
        with torch.no_grad():
            p = model(draw.x, draw.t, batch.cond)
        v = p if model.prediction == "velocity" else velocity_of(model, draw, p)
        total += float((draw.note * (v - draw.target).square().flatten(1).mean(1)).mean())
    return total / len(batch.draws)


def velocity_of(model: Any, draw: Any, eps: Tensor) -> Tensor:
    c = model.process(draw.t)
    x0 = (draw.x - one(c.sigma, eps) * eps) / one(c.alpha, eps)
    return one(c.d_alpha, eps) * x0 + one(c.d_sigma, eps) * eps


def one(v: Tensor, like: Tensor) -> Tensor:
    return v.to(like).view(-1, *[1] * (like.ndim - 1))


START: dict[str, Callable[[Place, Any, Any], float]] = {
    "diffusion-dpo": lambda place, method, batch: LOG2,
    "diffusion-sdpo": lambda place, method, batch: LOG2,
    "dspo": lambda place, method, batch: winners(place, batch),
    "mapo": mapo,
    "rank-dpo": rank,
    "diffusion-kto": lambda place, method, batch: -0.5,
    "online-dpo": lambda place, method, batch: LOG2 * float(batch.mask.double().mean()),
    "d3po": lambda place, method, batch: LOG2 * float(batch.mask.double().mean()),
    "spo": lambda place, method, batch: LOG2,
    "prdp": lambda place, method, batch: float(batch.gap.square().mean()),
    "dlpo": lambda place, method, batch: 0.0,
    "rwr": weighted,
}  # fmt: skip
"""The loss before the first update, from the batch alone."""


def switched_off(net: torch.nn.Module, on: bool) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in net.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(on)


@pytest.mark.parametrize("name", FAMILY)
def test_adapters_alone_are_tuned_from_the_reference(name: str, place: Place) -> None:
    """Two iterations: the first loss is the one of the reference (1e-5), all losses are finite, adapters alone move,
    the reference is the network with its adapters off to the bit, and online methods score what they draw."""
    assert set(START) == set(FAMILY)
    policy, reward = place.policy, Mean()
    policy.load("current", place.fresh)
    before = {k: v.clone() for k, v in policy.net.state_dict().items()}
    method = made(name, place, reward)
    run = Run(policy, method, TrainConfig(lr=1e-2, max_grad_norm=None), source(method.data, place))
    if name == "spo":  # a new judge is constant, and the policy waits for it
        with torch.no_grad():
            for p in method.modules()["preference_model"].parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
    batches, collect = list[Any](), method.collect
    object.__setattr__(method, "collect", lambda *parts: batches.append(collect(*parts)) or batches[-1])
    first = iterate(run)
    start = START[name](place, method, batches[0])
    assert first["loss"] == pytest.approx(start, rel=1e-5, abs=1e-6)
    run.done = 1
    assert math.isfinite(iterate(run)["loss"])
    after = policy.net.state_dict()
    changed = {k for k, v in after.items() if not torch.equal(v, before[k])}
    assert changed and all("lora_" in k for k in changed)
    x, t = torch.randn(B, *policy.model.shape, generator=torch.Generator().manual_seed(3)), torch.tensor(0.4)
    with torch.no_grad():
        reference, tuned = (policy.view(v)(x, t, place.cond) for v in ("reference", "current"))
        switched_off(policy.net, False)
        off = policy.view("current")(x, t, place.cond)
        switched_off(policy.net, True)
    assert torch.equal(reference, off) and not torch.equal(tuned, off)
    online = method.data == "prompts"
    assert reward.seen == ([(B, *place.drawn)] * 2 if online else [])
