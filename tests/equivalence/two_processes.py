"""Trains the tiny run on as many processes as it is launched with; process 0 writes curve, gradient and world size."""

import copy
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from girsanov.checkpoint import load, save
from girsanov.config.parts import parameters
from girsanov.control import LQ
from girsanov.control.agents import AGENTS
from girsanov.control.policies import AffineActor
from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.language import LANGUAGE_METHODS
from girsanov.language.rewards import Vowels
from girsanov.methods import METHODS
from girsanov.policy import Policy
from girsanov.problems import LinearReward
from girsanov.prompts import ClassPrompts
from girsanov.recipes import get_recipe
from girsanov.recipes.pipeline_evaluation import PipelineEvaluator
from girsanov.recipes.words import WordsConfig, fresh, source_of
from girsanov.recipes.words_evaluation import DRAW
from girsanov.resume import restore
from girsanov.rewards.base import Reward
from girsanov.samplers import Euler
from girsanov.spread import Spread
from girsanov.store import fingerprint
from girsanov.train import Run, TrainConfig, iterate
from girsanov.types import Cond, Prompts
from tests.tiny import tiny_run

METHODS_HERE = ("ode-am", "am", "clipped-pg", "nft", "ddpo", "branch-grpo", "dgpo", "crd", "ctrl", "ctrl-ratio", "cppo")
METHODS_HERE += ("online-dpo", "d3po", "prdp", "rwr")
METHODS_HERE += tuple(f"words-{name}" for name in ("dpo", "kto", "bco", "grpo", "ppo", "spin", "p3o-on-off"))
CROWDED = {"crowded-clipped-pg": {2, 12}, "crowded-ctrl": {6}}
"""Passes of the network in which process 1 of two runs out of memory: in a rollout, after a backward pass, and in a
collection after the processes have met in it."""
METHODS_HERE += tuple(CROWDED)


class Crowded(nn.Module):
    """A network that runs out of memory in some of its passes."""

    def __init__(self, inner: nn.Module, at: set[int]) -> None:
        super().__init__()
        self.inner, self.at, self.calls = inner, at, 0

    def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.calls += 1
        if self.calls in self.at:
            raise torch.OutOfMemoryError("no room")
        return self.inner(x, t, cond)


def crowded(name: str, accelerator: Accelerator | None) -> Run:
    """The run of a method in which process 1 has too little memory at some moments."""
    run = new_run(name.removeprefix("crowded-"), accelerator)
    at = CROWDED[name] if run.reduce.rank == 1 else set()
    model = dataclasses.replace(run.policy.model, net=Crowded(copy.deepcopy(run.policy.net), at))
    return Run(Policy(model), run.method, run.config, run.prompts, accelerator)


def new_run(name: str, accelerator: Accelerator | None) -> Run:
    """A run of a method, or of an agent on the linear-quadratic problem, or of a method of language models on words."""
    if name in CROWDED:
        return crowded(name, accelerator)
    if name.startswith("words-"):
        return words_run(name.removeprefix("words-"), accelerator)
    if name in METHODS:
        method = METHODS[name](reward=LinearReward([1.0, 0.5]), grid=Grid.uniform(4))
        return tiny_run(method, accelerator, iterations=3, max_grad_norm=None)
    environment = LQ(dt=0.2)
    policy = Policy(AffineActor(slope=((-0.3,),), offset=(-0.4,), std=0.5).build(environment))
    config = TrainConfig(iterations=3, lr=1e-2, max_grad_norm=None)
    prompts = ClassPrompts(num_classes=1, groups_per_batch=8, group_size=1)
    return Run(policy, AGENTS[name](environment=environment), config, prompts, accelerator)


def words_run(name: str, accelerator: Accelerator | None) -> Run:
    """The words recipe's own parts around a tiny untrained model, in float64."""
    config = WordsConfig(width=8, layers=1, pairs=24, batch=8, groups=4, group_size=2)
    model, reward = fresh(config), Vowels()
    model.net.double()
    policy, online = Policy(model), "reward" in parameters(LANGUAGE_METHODS[name])
    method = LANGUAGE_METHODS[name](**({"reward": reward, "sampling": DRAW} if online else {}))
    settings = TrainConfig(iterations=3, lr=1e-3, max_grad_norm=None)
    return Run(policy, method, settings, source_of(config, method, policy, reward), accelerator)


def curve(run: Run, n: int) -> list[dict[str, float]]:
    """The metrics of n iterations, times left out."""
    rows = []
    for _ in range(n):
        rows.append({k: v for k, v in iterate(run).items() if not k.startswith(("time/", "speed/"))})
        run.done += 1
    return rows


class Noting(Reward):
    """Notes which samples it has scored."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        self.seen += prompts.ids.tolist()
        return x[:, 0] + 0.1 * prompts.ids.to(x)


def evaluated(accelerator: Accelerator | None) -> dict[str, Any]:
    """Numbers of evaluations in three lots, of which the last is short, a digest of their samples, and passes made."""
    run, counts, reward = tiny_run(None, accelerator, dtype=torch.float32), [0], Noting()
    index = torch.arange(4)
    meta = [{"text": name} for name in "abcd"]
    evaluator = PipelineEvaluator(
        Euler(), Grid.uniform(3), Cond({"label": index}, index), meta, "abcd", reward, None, 8, 3, 7, 5,
        torch.device("cpu"), Spread(run.reduce),
    )  # fmt: skip
    with torch.no_grad():
        for p in run.policy.parameters():
            p.add_(0.05)
        run.policy.move_copy("ema", 0.0)
    handle = run.policy.net.register_forward_hook(lambda *_: counts.__setitem__(0, counts[0] + 1))
    numbers, drawn = evaluator(run), evaluator.sample(run.model(), 8, 6)
    handle.remove()
    recipe = get_recipe("mixture")
    parts = recipe.build(recipe.config(width=8, samples=1250), torch.device("cpu"), accelerator)
    plane = parts.sample(parts.run.model(), 1250, 7)
    reduce, own = run.reduce, (counts[0], sorted(reward.seen))
    return {
        "numbers": {**numbers, **{f"plane/{k}": v for k, v in parts.evaluate(parts.run).items()}},
        "samples": [fingerprint(drawn.x), fingerprint(plane.x)],
        "work": Spread(reduce).apart(reduce.world_size, 1, lambda ids: own),
    }


def refused(run: Run, out: Path) -> str:
    """What is said where only process 0 sees the checkpoints, as on disks of its own; empty if nothing is."""
    try:
        restore(run, out / ("checkpoints" if run.reduce.rank == 0 else "elsewhere"))
    except GirsanovError as error:
        return str(error)
    return ""


def main(out: Path, accelerator: Accelerator | None) -> None:
    """Everything that is compared between one and two processes."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"world_size": 1 if accelerator is None else accelerator.num_processes}
    for name in METHODS_HERE:
        run = new_run(name, accelerator)
        gradients: list[torch.Tensor] = []
        step = run.optimizers["policy"].step

        def keep(run: Run = run, gradients: list[torch.Tensor] = gradients, step: object = step) -> None:
            gradients.append(torch.cat([p.grad.flatten() for p in run.policy.parameters() if p.grad is not None]))
            step()

        run.optimizers["policy"].step = keep
        found[name] = {"curve": curve(run, 3), "gradients": [g.tolist() for g in gradients]}
        if name in CROWDED:
            found[name] |= {"sizes": [getattr(run.method, "rollout_micro_batch", None), run.config.micro_batch]}
    run = tiny_run(None, accelerator, iterations=6)
    torch.manual_seed(run.reduce.rank)  # each process its own random state: all of them must come back
    curve(run, 2)
    path = save(run, out / "checkpoints")
    drawn = float(torch.rand(()))
    rest = curve(run, 2)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    other = tiny_run(None, accelerator, iterations=6)
    load(other, path or out / "checkpoints" / "0000002")
    found["resumed"] = {"same_random": drawn == float(torch.rand(())), "same_curve": curve(other, 2) == rest}
    found["refused"] = refused(other, out)
    found["evaluated"] = evaluated(accelerator)
    if run.reduce.rank == 0:
        (out / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Accelerator(cpu=True))
