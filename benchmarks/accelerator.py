"""Iterations of real sizes on an accelerator: seconds, MFU, peak memory; one JSON line per figure, and a table.

    python benchmarks/accelerator.py --json accelerator.jsonl --table accelerator.md
    python benchmarks/accelerator.py --models sit-xl --methods ode-am am --compile off     # a part of it
    python benchmarks/accelerator.py --tiny --device cpu                                   # to see that it runs

Networks, autoencoders and the reward's tower have their published sizes and random weights, built here: nothing is
downloaded, and neither speed nor memory depends on what weights say. SiT-XL/2 and the UNet of Stable Diffusion 1.5
train all their weights (float32, arithmetic in bf16), FLUX.2 Klein 4B trains adapters of rank 16 on bf16 weights.

``batch`` is the largest of 2, 4, 8, ... samples that go through at once, found with few steps, as memory hardly grows
with their number. ``seconds`` is the median iteration without the first, which compiles and warms up, ``phases`` its
parts (``docs/throughput.md``), decoder and reward apart; ``mfu_loss`` is that of the training passes.

``ode-am`` trains the last K = 3 of N = 40 steps, ``am`` trains 20 of its 40, the paper's choice. The aim: ode-am takes
at most 40 % of am's time, decoder and reward left out; at least 45 % MFU in the training passes of SiT-XL/2.
"""

import argparse
import dataclasses
import gc
import json
import statistics
import time
from pathlib import Path

import diffusers
import torch
from torch import nn

from girsanov.adapters.base import Adapter
from girsanov.adapters.flux2 import Flux2Klein
from girsanov.adapters.sit import SiT, SiTNetwork
from girsanov.adapters.stable_diffusion import StableDiffusion
from girsanov.adapters.weights import train_adapters, train_everything
from girsanov.callbacks import Throughput
from girsanov.compiling import compile_network
from girsanov.methods import METHODS
from girsanov.methods.policy_gradient.steps import Subset
from girsanov.pairs import Pairs
from girsanov.policy import Policy
from girsanov.rewards.base import Reward
from girsanov.samplers import GDDIM
from girsanov.train import Run, TrainConfig, iterate
from girsanov.types import Cond, Prompts

# ---- networks of their published sizes


def sit_xl(tiny):
    """SiT-XL/2 at 256 x 256 pixels."""
    large = {"size": 32, "patch": 2, "channels": 4, "out_channels": 8, "width": 1152, "depth": 28, "heads": 16}
    small = {"size": 8, "width": 32, "depth": 2, "heads": 2}
    network = SiTNetwork(**(large | (small if tiny else {})), classes=10 if tiny else 1000)
    adapter = SiT(shaken(network), diffusers.AutoencoderKL(**autoencoder(tiny)))
    train_everything(adapter)
    return adapter


def sd15(tiny):
    """Stable Diffusion 1.5 at 512 x 512 pixels."""
    large = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
    small = {
        "sample_size": 8,
        "cross_attention_dim": 16,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "attention_head_dim": 2,
    }
    table = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    pipe = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(**autoencoder(tiny)),
        text_encoder=None,
        tokenizer=None,
        unet=shaken(diffusers.UNet2DConditionModel(**(small if tiny else large))),
        scheduler=diffusers.DDIMScheduler(**table, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    adapter = StableDiffusion(pipe)
    train_everything(adapter)
    return adapter


def flux2_klein(tiny):
    """FLUX.2 Klein 4B at 1024 x 1024 pixels, adapters of rank 16 on the attention."""
    large = {"in_channels": 128, "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24}
    large |= {"attention_head_dim": 128, "joint_attention_dim": 7680, "axes_dims_rope": (32, 32, 32, 32)}
    small = {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2}
    small |= {"attention_head_dim": 16, "joint_attention_dim": 24, "axes_dims_rope": (4, 4, 4, 4)}
    vae = {"latent_channels": 4, "block_out_channels": (8, 8), "norm_num_groups": 2, "layers_per_block": 1}
    vae |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    shift = {"use_dynamic_shifting": True, "time_shift_type": "exponential", "shift": 3.0}
    transformer = diffusers.Flux2Transformer2DModel(**(small if tiny else large), guidance_embeds=False).to(
        torch.bfloat16
    )
    pipe = diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**shift),
        vae=diffusers.AutoencoderKLFlux2(**(vae if tiny else {})).to(torch.bfloat16),
        text_encoder=None,
        tokenizer=None,
        transformer=shaken(transformer.to(torch.bfloat16)),
    )
    if tiny:
        pipe.default_sample_size = 8
    adapter = Flux2Klein(pipe)
    train_adapters(adapter, rank=16)
    return adapter


def autoencoder(tiny):
    """The settings of Stable Diffusion's autoencoder."""
    blocks = (8, 8) if tiny else (128, 256, 512, 512)
    return {
        "latent_channels": 4,
        "block_out_channels": blocks,
        "down_block_types": ("DownEncoderBlock2D",) * len(blocks),
        "up_block_types": ("UpDecoderBlock2D",) * len(blocks),
        "norm_num_groups": 2 if tiny else 32,
        "layers_per_block": 1 if tiny else 2,
        "sample_size": 16 if tiny else 512,
        "scaling_factor": 0.18215,
    }


@torch.no_grad()
def shaken(network):
    """The network with parameters that start at zero moved off it, so that no gradient vanishes."""
    for p in network.parameters():
        if not p.is_meta and not bool(p.any()):
            p.normal_(std=0.02)
    return network


MODELS = {"sit-xl": sit_xl, "sd15": sd15, "flux2-klein": flux2_klein}
TEXT = {"sd15": (77, 768, 16), "flux2-klein": (512, 7680, 24)}
"""Tokens and width of the text conditions, and the width of the tiny ones."""


# ---- reward, requests, methods


class Tower(Reward):
    """A linear score on CLIP ViT-L/14's image tower with random weights: what a learned reward costs."""

    name, differentiable = "tower", True

    def __init__(self, tiny, device):
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        self.side = 28 if tiny else 224
        config = CLIPVisionConfig(
            **(small if tiny else sizes), patch_size=14, image_size=self.side, projection_dim=16 if tiny else 768
        )
        self.tower = CLIPVisionModelWithProjection(config).to(device, torch.bfloat16).eval().requires_grad_(False)

    def __call__(self, x, prompts):
        pixels = nn.functional.interpolate(x.float(), (self.side, self.side), mode="bilinear", antialias=True)
        return self.tower(pixel_values=pixels.to(torch.bfloat16)).image_embeds.float().mean(1)


@dataclasses.dataclass(frozen=True)
class Requests:
    """The same requests in every iteration: classes, or random embeddings; two samples of each."""

    cond: Cond

    def batch(self, iteration, rank=0, world_size=1):
        n = torch.arange(len(self.cond))
        return Prompts(self.cond, n, n // 2, tuple(range(len(n))))


def conditions(name, batch, tiny, device):
    """The conditions of a batch."""
    index = torch.arange(batch, device=device) // 2
    if name not in TEXT:
        return Cond({"label": torch.arange(batch // 2, device=device) % 10}, index)
    tokens, width, small = TEXT[name]
    shape = (batch // 2, 8, small) if tiny else (batch // 2, tokens, width)
    return Cond({"text": torch.randn(shape, device=device, dtype=torch.bfloat16)}, index)


def source(name, method, shape, batch, tiny, device):
    """Where the method's data comes from."""
    cond = conditions(name, batch, tiny, device)
    if method.data == "prompts":
        return Requests(cond)
    chosen, rejected = torch.randn(2, batch, *shape, device=device)
    return Pairs(cond, chosen, rejected, batch)


def build(name, adapter, reward, steps):
    """The method of a row, with its number of steps (fewer to probe the memory), and its loss steps."""
    flow = not isinstance(adapter, StableDiffusion)
    n = steps or {"ode-am": 40, "am": 40}.get(name, 10)
    common = {"reward": reward, "grid": adapter.grid(n)}
    if name == "diffusion-dpo":
        return METHODS[name](), 1
    if name == "ode-am":
        return METHODS[name](**common, last=min(3, n)), min(3, n)
    if name == "am":
        half = max(1, n // 4)
        return METHODS[name](**common, steps=Subset(half, half)), 2 * half
    if name == "flow-grpo" and not flow:  # its own sampler is one of flows
        common["sampler"] = GDDIM(0.7)
    made = METHODS[name](**common)
    return made, n - 1 if name == "flow-grpo" else made.draws


ROWS = ("ode-am", "am", "flow-grpo", "nft", "diffusion-dpo")


# ---- measuring


def new_run(model, adapter, policy, reward, method, batch, chosen, steps=None):
    """A run of a method on a policy, and how many of its steps carry a loss."""
    made, loss_steps = build(method, adapter, reward, steps)
    device = policy.device
    return Run(
        policy,
        made,
        TrainConfig(iterations=1000, lr=1e-6),
        source(model, made, adapter.shape, batch, chosen.tiny, device),
    ), loss_steps


def fits(*args):
    """Whether an iteration of few steps goes through."""
    try:
        iterate(new_run(*args, steps=4)[0])
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        free()


def largest(model, adapter, policy, reward, method, chosen):
    """The largest power of two that goes through at once, and does not fill the card to the last byte."""
    if chosen.batch:
        return chosen.batch
    batch = 2
    if policy.device.type == "cpu":
        return batch
    while 2 * batch <= chosen.most and fits(model, adapter, policy, reward, method, 2 * batch, chosen):
        batch *= 2
    return batch


def measure(model, adapter, reward, method, batch, compiled, chosen):
    """One row. The policy is a new one, so nothing but the network is left of the row before."""
    policy = policy_of(adapter)
    device = policy.device
    if compiled:
        torch.compiler.reset()  # the shapes of the row before would make this one's sizes variable
    run, loss_steps = new_run(model, adapter, policy, reward, method, batch, chosen)
    while not (rows := timed(run, chosen.repeats)) and batch > 2:  # the probe took fewer steps, with fewer states
        batch //= 2
        run, loss_steps = new_run(model, adapter, policy, reward, method, batch, chosen)
    if not rows:
        raise SystemExit(f"{method} of {model} does not fit on {device} with two samples")
    found = {k: statistics.median(r[k] for r in rows[1:]) for k in rows[-1] if k.startswith(("time/", "speed/"))}
    trained = sum(p.numel() for p in policy.parameters())
    return {
        "figure": "iteration",
        "card": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "model": model + (" (tiny)" if chosen.tiny else ""),
        "parameters": sum(p.numel() for p in policy.net.parameters()),
        "trained": trained,
        "method": method,
        "N": len(run.method.grid) if run.method.data == "prompts" else None,
        "loss_steps": loss_steps,
        "batch": batch,
        "compile": compiled,
        "seconds": round(statistics.median(r["seconds"] for r in rows[1:]), 4),
        "phases": {k.removeprefix("time/"): round(v, 4) for k, v in found.items() if k.startswith("time/")},
        "samples_per_second": round(found["speed/samples"], 3),
        "mfu": found.get("speed/mfu"),
        "mfu_loss": found.get("speed/mfu_loss"),
        "peak_gib": round(found["speed/peak_mb"] / 1024, 2),
    }


def measured(model, chosen):
    """The rows of a model, as they are done. Batches are found without compiling, which every size would ask for."""
    torch.manual_seed(0)
    device = torch.device(chosen.device)
    adapter: Adapter = MODELS[model](chosen.tiny)
    adapter.pipe.vae.to(torch.bfloat16)
    adapter.to(device)
    reward = Tower(chosen.tiny, device)
    batches = {m: largest(model, adapter, policy_of(adapter), reward, m, chosen) for m in chosen.methods}
    for compiled in {"on": (True,), "off": (False,), "both": (False, True)}[chosen.compile]:
        if compiled:
            compile_network(adapter.net, device)
        for method in chosen.methods:
            yield json.dumps(measure(model, adapter, reward, method, batches[method], compiled, chosen))
            free()


def policy_of(adapter):
    """A policy over the adapter's network, with arithmetic in bf16."""
    return Policy(dataclasses.replace(adapter.model(), autocast=torch.bfloat16))


def timed(run, repeats):
    """The metrics and seconds of some iterations, the first one among them; nothing if the memory does not do."""
    throughput, rows, device = Throughput(), [], run.policy.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    throughput.start(run)
    try:
        for _ in range(repeats + 1):
            start = time.perf_counter()
            metrics = iterate(run)
            run.done += 1
            throughput.iteration(run, metrics)
            rows.append({**metrics, "seconds": time.perf_counter() - start})
        return rows
    except torch.OutOfMemoryError:
        return []
    finally:
        throughput.end(run)
        free()


def free():
    """Gives memory back that nothing holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---- the table

COLUMNS = ("model", "method", "N", "loss steps", "batch", "compile", "seconds", "samples/s", "MFU", "MFU of the loss")
COLUMNS += ("rollout", "decode", "reward", "rest of the batch", "loss", "update", "peak GiB")


def share(value):
    return "–" if value is None else f"{100 * value:.1f} %"


def table(lines):
    """Markdown: a card a section, a row a line, and the ratio of ode-am to am where both were measured."""
    key = ("card", "model", "method", "compile")
    lines = list({tuple(line[k] for k in key): line for line in lines}.values())  # what was measured again counts
    parts = []
    for card in dict.fromkeys(line["card"] for line in lines):
        rows = [line for line in lines if line["card"] == card]
        parts += [f"## {card}, torch {rows[0]['torch']}", "", "| " + " | ".join(COLUMNS) + " |"]
        parts += ["| " + " | ".join(["---"] * len(COLUMNS)) + " |"]
        for r in rows:
            p = {k: f"{r['phases'][k]:.3f}" if k in r["phases"] else "–" for k in PHASES}
            switch = "on" if r["compile"] else "off"
            head = [r["model"], r["method"], r["N"] or "–", r["loss_steps"], r["batch"], switch]
            speed = [r["seconds"], r["samples_per_second"], share(r["mfu"]), share(r["mfu_loss"])]
            parts.append("| " + " | ".join(map(str, [*head, *speed, *p.values(), r["peak_gib"]])) + " |")
        parts += ["", *ratios(rows), ""]
    return "\n".join(parts)


PHASES = ("rollout", "decode", "reward", "collect", "loss", "update")


def ratios(rows):
    """ODE-AM over AM by sample, decoder and reward left out."""

    def cost(r):
        return sum(v for k, v in r["phases"].items() if k not in ("decode", "reward")) / r["batch"]

    by = {(r["model"], r["compile"], r["method"]): r for r in rows}
    return [
        f"- {model}, compile {'on' if compiled else 'off'}: an iteration of ode-am takes "
        f"{100 * cost(by[model, compiled, 'ode-am']) / cost(by[model, compiled, 'am']):.1f} % of am's time a sample, "
        "decoder and reward left out."
        for model, compiled, method in by
        if method == "ode-am" and (model, compiled, "am") in by
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--compile", choices=("on", "off", "both"), default="both")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="small networks: to see that it runs")
    parser.add_argument("--batch", type=int, help="samples (an even number; default: what fills the card)")
    parser.add_argument("--most", type=int, default=512, help="samples to try at most (default 512)")
    parser.add_argument("--repeats", type=int, default=3, help="iterations after the first (default 3)")
    parser.add_argument("--json", metavar="FILE", help="append the lines there as well")
    parser.add_argument("--table", metavar="FILE", help="write all lines of --json as a table there")
    chosen = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()  # it minds that a part of a network is cast
    if not chosen.tiny and torch.device(chosen.device).type == "cpu":
        parser.error("networks of their true size want an accelerator: give --device cuda, or --tiny")
    if chosen.table and not chosen.json:
        parser.error("--table writes the lines of --json: give both")
    for model in chosen.models:
        for line in measured(model, chosen):
            print(line, flush=True)
            if chosen.json:
                with Path(chosen.json).open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
    if chosen.table:
        lines = [json.loads(line) for line in Path(chosen.json).read_text(encoding="utf-8").splitlines()]
        Path(chosen.table).write_text(table(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
