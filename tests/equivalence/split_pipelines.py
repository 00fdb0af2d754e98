"""Adapters of tiny pipelines trained on one process, and on two that split the frozen network.

Run as ``python -m tests.equivalence.split_pipelines OUT ROOT``: ROOT holds the pipelines, made before.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from girsanov.adapters.weights import save_weights, train_adapters
from girsanov.methods import METHODS
from girsanov.policy import Policy
from girsanov.rewards import FunctionReward
from girsanov.sharding import Sharding
from girsanov.train import Run, TrainConfig
from tests.end_to_end.test_pipelines import SCALE, contrast, opened, prompts_of
from tests.equivalence.sharded import CPU, curve, gradients_of, share_held

FAMILIES = ("sd3", "flux2-klein", "sit", "sd15")
METHODS_HERE = ("ode-am", "clipped-pg", "nft")
CASES = tuple(f"{family}/{method}" for family in FAMILIES for method in METHODS_HERE)


def new_run(case: str, root: Path, accelerator: Accelerator | None, checkpointing: bool = False) -> tuple[Any, Run]:
    """The adapter of a pipeline and a run of it; split where there are several processes.

    The adapters are moved by noise of seed 3: ``lora_B = 0`` would hide what feeds ``lora_A``.
    The rate is small: AdamW makes a whole step, of either sign, of a gradient that is nothing but rounding.
    """
    family, name = case.split("/")
    adapter = opened(family, root)
    if checkpointing:
        adapter.network.enable_gradient_checkpointing()
    train_adapters(adapter, rank=2, alpha=3)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in adapter.network.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=g))
    prompts = prompts_of(adapter)
    method = METHODS[name](reward=FunctionReward(contrast, differentiable=True), grid=adapter.grid(3))
    guidance = dict.fromkeys(("rollout", "adjoint", "train"), SCALE)
    sharding = None if accelerator is None else Sharding(adapter.net, CPU)
    config = TrainConfig(iterations=2, lr=1e-5, max_grad_norm=None)
    return adapter, Run(Policy(adapter.model(), guidance, sharding), method, config, prompts, accelerator)


def main(out: Path, root: Path, accelerator: Accelerator | None) -> None:
    """Curves and gradients of every case, with the blocks recomputed as well; adapters of the first for diffusers."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"world_size": 1 if accelerator is None else accelerator.num_processes}
    for case in CASES:
        for recomputed in (False, True):
            adapter, run = new_run(case, root, accelerator, recomputed)
            gradients = gradients_of(run)
            key = f"{case}/recomputed" if recomputed else case
            found[key] = {"curve": curve(run, 2), "gradients": gradients, "held": share_held(run)}
            weights = run.policy.state()
            if run.reduce.rank == 0 and not recomputed:
                save_weights(adapter, weights, out / case)
    if accelerator is None or accelerator.is_main_process:
        (out / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Accelerator(cpu=True))
