r"""A tuned pipeline as an ordinary one: the run's adapters added to the weights, written whole for diffusers.

.. math:: W = W_{ref} + s\, \tfrac{\alpha}{r} B A, \qquad\text{or}\qquad W = W_{ref} + s\, (W_{tuned} - W_{ref})

with full fine-tuning; s is the strength. The pipeline is opened in the dtype it is written in, so no more memory is
needed than to use it; in bf16 the product is rounded, and the sum again. What is written loads as any pipeline does,
``DiffusionPipeline.from_pretrained(folder)``, and may be tuned again: it is then the reference.
"""

import argparse
import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from girsanov.adapters.base import Adapter
from girsanov.adapters.load import INDEX, quiet
from girsanov.adapters.weights import PREFIX, merge_adapters
from girsanov.checkpoint import verify
from girsanov.disk import full_disk
from girsanov.errors import GirsanovError
from girsanov.launch import Launch, choose_checkpoint
from girsanov.recipes.pipelines import PipelineRunConfig, opened
from girsanov.weights import is_lora

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def merge_command(chosen: argparse.Namespace, command: str) -> int:
    """``girsanov merge``."""
    line = merge_run(Path(chosen.run), Path(chosen.out), chosen.checkpoint, chosen.strength, chosen.dtype)
    print(f"{chosen.out} holds the whole pipeline; load it with")
    print(f"  {line}")
    return 0


def merge_run(run: Path, out: Path, which: str = "last", strength: float = 1.0, dtype: Precision | None = None) -> str:
    """Writes the pipeline of a run with what it has learned in its weights.

    Args:
        run: the folder of the run.
        out: a folder that does not exist yet, or is empty.
        which: the "last" checkpoint, the "best" one, or that of an iteration.
        strength: s; 0 is the pretrained pipeline, 1 the tuned one.
        dtype: "fp32", "bf16" or "fp16", of all written weights; the run's precision by default.

    Returns:
        The line of Python that loads it.

    Raises:
        GirsanovError: no run, a run of no pipeline, a folder in use, a control that is no single network.
    """
    launch = Launch.existing(run)
    config = launch.config
    if not isinstance(config, PipelineRunConfig):
        raise GirsanovError(
            f"{run} is a run of {launch.recipe.name}, which tunes no pipeline of diffusers: merge takes runs that do"
        )
    if config.method.options.get("gate"):
        raise GirsanovError(
            f"{run} was tuned with method.gate=true: it is one network near the data and another above, which no "
            "pipeline holds; sample it with girsanov sample"
        )
    if dtype is not None and dtype not in DTYPES:
        raise GirsanovError(f"--dtype {dtype}: it is one of {', '.join(DTYPES)}")
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise GirsanovError(f"{out} is not empty: give another --out")
    checkpoint = choose_checkpoint(launch.folder, which)
    verify(checkpoint)
    weights = load_file(checkpoint / f"{'current' if config.train.ema is None else 'ema'}.safetensors")
    precision = dtype or config.precision
    adapter = opened(dataclasses.replace(config, precision=precision))
    put(adapter, weights, strength)
    return written(adapter, out, DTYPES[precision])


@torch.no_grad()
def put(adapter: Adapter, weights: Mapping[str, Tensor], strength: float) -> None:
    """Puts trained weights into the adapter's network, at a strength, and merges adapters. In place.

    Raises GirsanovError if they belong to another network.
    """
    trained = {n: p for n, p in adapter.network.named_parameters() if p.requires_grad}
    named = {n.removeprefix(PREFIX): w for n, w in weights.items()}
    if named.keys() != trained.keys() or any(w.shape != trained[n].shape for n, w in named.items()):
        raise GirsanovError("the checkpoint's weights belong to another network: was model, or lora, changed since?")
    adapters = any(is_lora(n) for n in trained)
    for name, p in trained.items():
        p.copy_(named[name] if adapters else torch.lerp(p, named[name].to(p), strength))
    if adapters:
        merge_adapters(adapter.network, strength)


def written(adapter: Adapter, out: Path, dtype: torch.dtype) -> str:
    """Writes the whole pipeline into a folder, which is there at once or not at all; the line that loads it."""
    for part in adapter.pipe.components.values():  # full fine-tuning opens all of them in float32
        if isinstance(part, nn.Module):
            part.to(dtype)
    draft = out.with_name(f".{out.name}.writing")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        with full_disk(f"the merged pipeline in {out}"), quiet():
            draft.mkdir(parents=True)
            adapter.pipe.save_pretrained(str(draft))
            if out.exists():
                out.rmdir()
            draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    if not (out / INDEX).is_file():
        return f"girsanov.adapters.load_pipeline({f'{out}/network.pt,{out}/vae'!r})"
    kind = json.loads((out / INDEX).read_text(encoding="utf-8"))["_class_name"]
    name = f"diffusers.{kind}.from_pretrained({str(out)!r}"
    return f"{name})" if dtype == torch.float32 else f"{name}, dtype=torch.{str(dtype).removeprefix('torch.')})"
