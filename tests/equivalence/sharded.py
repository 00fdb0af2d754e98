"""A small transformer trained whole on one process, split on two: what both write down is compared.

Run as ``python -m tests.equivalence.sharded OUT ONE few|all``: ONE holds what one process wrote.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from girsanov.adapters.lora import add_lora
from girsanov.checkpoint import load, save
from girsanov.distributed import held, is_split
from girsanov.grids import Grid
from girsanov.methods import METHODS
from girsanov.methods.base import Method
from girsanov.models import Model
from girsanov.nets import DiTConfig
from girsanov.pairs import Pairs
from girsanov.policy import Policy
from girsanov.processes import RectifiedFlow
from girsanov.prompts import ClassPrompts
from girsanov.rewards.function import FunctionReward
from girsanov.sharding import Sharding
from girsanov.train import PromptSource, Run, TrainConfig, iterate
from girsanov.types import Cond
from tests.equivalence import split_language

SHAPE, CLASSES, F64 = (1, 4, 4), 3, torch.float64
CPU = torch.device("cpu")
METHODS_HERE: dict[str, dict[str, Any]] = {
    "ode-am": {},
    "am": {},
    "draft": {"checkpoint": True},
    "refl": {},
    "clipped-pg": {},
    "nft": {},
    "diffusion-dpo": {},
    "ctrl": {"pretrain": 1},
}
"""A member of every family, and its settings."""
KINDS = ("lora", "full")
FEW: tuple[str, ...] = ("lora/ode-am", "lora/clipped-pg", "full/am", "full/nft", "full/ctrl")
"""What the default tests run; the rest is marked slow."""
FEW += split_language.FEW
ALL = tuple(f"{kind}/{name}" for kind in KINDS for name in METHODS_HERE) + split_language.ALL
TWICE = {"clipped-pg": {"epochs": 2, "micro_batch": 2, "lr": 1e-5}, "diffusion-dpo": {"micro_batch": 2}}
"""Old policies and gradients added up over micro-batches."""


def model_of(kind: str) -> Model:
    """A transformer of two blocks, all of its weights away from zero; with adapters or without."""
    net = DiTConfig(shape=SHAPE, width=8, blocks=2, heads=2, classes=CLASSES).build(0).double()
    if kind == "lora":
        add_lora(net, rank=2, targets=["qkv", "merge", "film", "inlet"])
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.add_(0.1 * torch.sin(torch.arange(p.numel(), dtype=p.dtype) + i).view_as(p))
    return Model(net, RectifiedFlow(), "velocity", SHAPE)


def reward() -> FunctionReward:
    """Bright pictures whose rows differ."""
    return FunctionReward(lambda x, prompts: x.flatten(1).mean(1) + 0.3 * x.flatten(1).std(1), differentiable=True)


def source_of(method: Method) -> PromptSource:
    """Requests for eight samples, or as many pairs."""
    if method.data == "prompts":
        return ClassPrompts(num_classes=CLASSES, groups_per_batch=4, group_size=2)
    x = torch.randn((2, 16, *SHAPE), dtype=F64, generator=torch.Generator().manual_seed(3))
    return Pairs(Cond({"label": torch.arange(16) % CLASSES}, torch.arange(16)), x[0], x[1], batch_size=8)


def new_run(name: str, kind: str, accelerator: Accelerator | None) -> Run:
    """A run of a method; split where there are several processes."""
    if name.startswith("words-"):
        return split_language.new_run(name.removeprefix("words-"), kind, accelerator)
    settings = METHODS_HERE[name] if METHODS[name].data != "prompts" else {"reward": reward(), **METHODS_HERE[name]}
    grid = {} if METHODS[name].data != "prompts" else {"grid": Grid.uniform(2)}
    method = METHODS[name](**settings, **grid)
    model = model_of(kind)
    policy = Policy(model, sharding=None if accelerator is None else Sharding(model.net, CPU))
    config = TrainConfig(iterations=4, **{"lr": 1e-2, "ema": 0.5, "max_grad_norm": 0.1, **TWICE.get(name, {})})
    return Run(policy, method, config, source_of(method), accelerator)


def curve(run: Run, n: int) -> list[dict[str, float]]:
    """The metrics of n iterations, times left out."""
    rows = []
    for _ in range(n):
        rows.append({k: v for k, v in iterate(run).items() if not k.startswith(("time/", "speed/"))})
        run.done += 1
    return rows


def gradients_of(run: Run) -> list[list[float]]:
    """A list that grows by the whole gradient at every step of the optimiser."""
    found: list[list[float]] = []
    step = run.optimizers["policy"].step

    def keep() -> None:
        parts = [p.grad for p in run.policy.parameters()]
        found.append(torch.cat([(g.full_tensor() if is_split(g) else g).flatten() for g in parts]).tolist())
        step()

    run.optimizers["policy"].step = keep
    return found


@torch.no_grad()
def seen(run: Run) -> dict[str, list[float]]:
    """What every view predicts at one state."""
    x, t = torch.linspace(-1, 1, 16, dtype=F64).reshape(1, *SHAPE), torch.tensor(0.4, dtype=F64)
    cond = Cond({"label": torch.arange(CLASSES)}, torch.tensor([1]))
    views = {
        "current": run.policy.view(),
        "reference": run.policy.view("reference"),
        "ema": run.policy.view("ema"),
        "half": run.policy.view(strength=0.5),
        "beyond": run.policy.view("ema", strength=1.5),
    }
    return {name: view(x, t, cond).flatten().tolist() for name, view in views.items()}


def share_held(run: Run) -> float:
    """How much of the network this process holds."""
    every = list(run.policy.net.parameters())
    return sum(held(p).numel() for p in every) / sum(p.numel() for p in every)


def main(out: Path, accelerator: Accelerator | None, cases: tuple[str, ...], one: Path | None = None) -> None:
    """Curves, gradients, views; checkpoints written here and read from one process."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"world_size": 1 if accelerator is None else accelerator.num_processes}
    for case in cases:
        kind, name = case.split("/")
        run = new_run(name, kind, accelerator)
        gradients = gradients_of(run)
        found[case] = {"curve": curve(run, 2), "gradients": gradients}
    for kind in KINDS:
        run = new_run("nft", kind, accelerator)
        first = curve(run, 2)
        path = save(run, out / kind)
        found[f"{kind}/views"], found[f"{kind}/held"] = seen(run), share_held(run)
        rest = curve(run, 2)
        if accelerator is not None:
            accelerator.wait_for_everyone()
        again = new_run("nft", kind, accelerator)
        load(again, path or out / kind / "0000002")
        found[f"{kind}/resumed"] = {"first": first, "rest": rest, "exactly": curve(again, 2) == rest}
        if one is not None:
            other = new_run("nft", kind, accelerator)
            load(other, one / kind / "0000002")
            found[f"{kind}/from_one"] = curve(other, 2)
    for kind in KINDS:
        for split in (True, False):
            run = split_language.new_run("dpo", kind, accelerator, split)
            curve(run, 1)
            found[f"{kind}/{'split' if split else 'whole'}/measured"] = split_language.measured(run, accelerator)
    if accelerator is not None:
        run = new_run("nft", "full", accelerator)
        run.state["mine"] = [run.reduce.rank]
        save(run, out / "mine")
    if accelerator is None or accelerator.is_main_process:
        (out / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Accelerator(cpu=True), ALL if sys.argv[3] == "all" else FEW, Path(sys.argv[2]))
