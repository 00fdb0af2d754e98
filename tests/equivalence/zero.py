"""The small transformer in float32, stepped by DeepSpeed on two processes and by AdamW on one: what both write down.

Run as ``python -m tests.equivalence.zero OUT ONE STAGE``: ONE holds what one process wrote.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from girsanov.accelerators import deepspeed
from girsanov.checkpoint import load, save
from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods import METHODS
from girsanov.policy import Policy
from girsanov.recipes import get_recipe
from girsanov.train import Run, TrainConfig
from tests.equivalence.sharded import CPU, KINDS, METHODS_HERE, curve, model_of, reward, source_of

CASES = ("ode-am", "am", "draft", "refl", "clipped-pg", "nft", "diffusion-dpo")
TWICE = {"clipped-pg": {"epochs": 2, "micro_batch": 2, "lr": 1e-4}, "diffusion-dpo": {"micro_batch": 2}}


def new_run(name: str, kind: str, accelerator: Accelerator | None, **more: Any) -> Run:
    """A run of a method in float32."""
    online = METHODS[name].data == "prompts"
    parts: dict[str, Any] = {"reward": reward(), "grid": Grid.uniform(2)} if online else {}
    method = METHODS[name](**{**parts, **METHODS_HERE.get(name, {})})
    model = model_of(kind)
    model.net.float()
    given = {"lr": 1e-3, "ema": 0.5, "max_grad_norm": 0.1, "schedule": "cosine", **TWICE.get(name, {}), **more}
    source: Any = source_of(method)
    if not online:
        source = dataclasses.replace(source, chosen=source.chosen.float(), rejected=source.rejected.float())
    return Run(Policy(model), method, TrainConfig(iterations=4, **given), source, accelerator)


def main(out: Path, accelerator: Accelerator | None, one: Path | None = None) -> None:
    """Curves of every method, and checkpoints taken up again, here and from one process."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"world_size": 1 if accelerator is None else accelerator.num_processes}
    for kind in KINDS:
        for name in CASES:
            found[f"{kind}/{name}"] = curve(new_run(name, kind, accelerator), 3)
        run = new_run("nft", kind, accelerator)
        save(run, out / f"{kind}-fresh")
        curve(run, 2)
        save(run, out / kind)
        rest = curve(run, 2)
        weights = run.policy.state()
        if accelerator is not None:
            accelerator.wait_for_everyone()
        again = new_run("nft", kind, accelerator)
        load(again, out / kind / "0000002")
        exactly = curve(again, 2) == rest and all(torch.equal(w, weights[k]) for k, w in again.policy.state().items())
        found[f"{kind}/resumed"] = {"rest": rest, "exactly": exactly}
        begun = new_run("nft", kind, accelerator)
        curve(begun, 1)  # a step that the fresh state must undo
        load(begun, out / f"{kind}-fresh" / "0000000")
        found[f"{kind}/restarted"] = curve(begun, 2)
        if one is not None:
            other = new_run("nft", kind, accelerator)
            load(other, one / kind / "0000002")
            found[f"{kind}/from_one"] = curve(other, 2)
    if accelerator is not None:
        found["said"] = refusals(accelerator)
    if accelerator is None or accelerator.is_main_process:
        (out / "found.json").write_text(json.dumps(found))


def refusals(accelerator: Accelerator) -> list[str]:
    """What the engine cannot do, in its words."""
    said = []
    for make in (critic, double, broken):
        try:
            make(accelerator)
        except GirsanovError as error:
            said.append(str(error))
    return said


def critic(accelerator: Accelerator) -> None:
    """A method with a second trained network."""
    new_run("ctrl", "full", accelerator)


def double(accelerator: Accelerator) -> None:
    """Weights in float64."""
    run = new_run("nft", "full", None)
    run.policy.net.double()
    Run(Policy(run.policy.model), run.method, run.config, run.prompts, accelerator)


def broken(accelerator: Accelerator) -> None:
    """A gradient that is not finite leaves weights and averages alone."""
    run = new_run("nft", "full", accelerator, ema=None)
    curve(run, 1)
    before = {k: w.clone() for k, w in run.policy.state().items()}
    backward = run.steps.backward
    run.steps.backward = lambda loss: backward(loss * float("inf"))  # type: ignore[method-assign]
    try:
        curve(run, 1)
    finally:
        assert all(torch.equal(w, before[k]) for k, w in run.policy.state().items())


if __name__ == "__main__":
    config = get_recipe("digits").config()
    main(Path(sys.argv[1]), deepspeed(config, CPU, False), Path(sys.argv[2]))
