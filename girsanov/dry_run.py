"""``girsanov run ... --dry-run``: everything that can go wrong before or in the first iteration, on a small scale.

A run is put together as it would be (settings, model, prompts, method), its reward scores one decoded sample of noise
(or a line of text), and one iteration is done with a single prompt and its group of samples: rollout, reward, losses,
backward passes and an optimiser step, with the run's own micro-batch. No run folder is made; embeddings of prompts go
to their cache. Memory is measured there and scaled up (``estimates.py``).

Launched on several processes, process 0 does it for one of them; with ``shard=true`` all do it together, as the network
may fit no other way. ``WORLD_SIZE=8 girsanov run ... --dry-run`` without a launcher works out what each of eight would
take.
"""

import dataclasses
import os
import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from girsanov.accelerators import accelerator_of, splittable
from girsanov.building import fitting
from girsanov.errors import GirsanovError
from girsanov.estimates import Needs, Trial, needs, tried
from girsanov.language.rewards import TextReward
from girsanov.launch import configure, limit_threads
from girsanov.memory import LiveBytes, size, told
from girsanov.noise import Noise
from girsanov.recipes import get_recipe
from girsanov.recipes.base import Assembled, RunConfig
from girsanov.train import Run

WIDTH = 110
ROOM = 1.05  # of what is counted: allocators round up


@dataclass
class Table:
    """What was looked at, a line each, printed as it comes."""

    failed: bool = False
    quiet: bool = False

    def say(self, text: str) -> None:
        """A line; of several processes, one speaks."""
        if not self.quiet:
            print(text)

    def add(self, name: str, text: str) -> None:
        """A line about something that is as it should be."""
        self.say(self.line("ok", name, text))

    def fail(self, name: str, text: str) -> None:
        """A line about something that would stop the run, whichever process has found it."""
        self.failed = True
        print(self.line("FAIL", name, text))

    def line(self, verdict: str, name: str, text: str) -> str:
        """A row of the table, its text wrapped."""
        head = f"  {verdict:<4}  {name:<10} "
        return textwrap.fill(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head))

    def look(self, name: str, what: Callable[[], str]) -> None:
        """Adds what ``what`` tells, or the sentence that it raises."""
        if self.failed:
            return
        try:
            self.add(name, what())
        except GirsanovError as error:
            self.fail(name, str(error))
        except torch.OutOfMemoryError:
            self.fail(name, "out of memory: lower train.micro_batch, method.rollout_micro_batch or the size")


def dry_run(recipe: str, layers: Sequence[Mapping[str, Any]], out: Path, device: torch.device) -> int:
    """Checks a run and prints what was found; the exit code, 2 where the run would fail."""
    found, table = get_recipe(recipe), Table()
    config = configure(found, layers)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    together = config.shard and world > 1 and "RANK" in os.environ
    if not together and os.environ.get("RANK", "0") != "0":
        return 0
    table.quiet = os.environ.get("RANK", "0") != "0"
    tiny, accelerator = small(config, world if together else 1), None
    table.say(f"girsanov run {recipe}: nothing is trained, no run folder is made")
    told_as = f" on each of {world} processes" if world > 1 else ""
    table.add("settings", f"{config.method.kind}, {config.train.iterations} iterations on {device}{told_as}")
    parts: list[Assembled] = []

    def build() -> str:
        nonlocal accelerator
        if together:
            accelerator = accelerator_of(found, config, device)
        elif config.shard and world > 1:
            splittable(found)
        limit_threads(found)
        with fitting(found, config, device):
            parts.append(found.build(tiny, device, accelerator))
        return parts[0].description

    table.look("parts", build)
    if parts:
        for label, text in parts[0].facts.items():
            table.add(label.lower(), text)
        run, trial = parts[0].run, Trial()
        table.look("reward", lambda: scored(parts[0], trial))
        table.look("iteration", lambda: tried(run, trial))
        table.look("memory", lambda: memory(needs(run, config, tiny, trial, parts[0].beside, world), config, device))
        table.look("disk", lambda: disk(run, config, out))
    table.say("the run can begin" if not table.failed else "the run would fail: mend this first")
    return 2 if table.failed else 0


def small(config: RunConfig, processes: int = 1) -> RunConfig:
    """The settings with one prompt an iteration for each process that tries them, one update, and no more simulated
    pairs than that takes."""
    names = {f.name for f in dataclasses.fields(config)}
    changes: dict[str, Any] = {"train": dataclasses.replace(config.train, minibatches=1, epochs=1)}
    if "groups" in names:
        changes["groups"] = processes
    if "pairs" in names:
        changes["pairs"] = max(2, processes * getattr(config, "group_size", 2))
    return dataclasses.replace(config, **changes)


def scored(parts: Assembled, trial: Trial) -> str:
    """The scores of one decoded sample of noise, or of a line of text, by the reward, and by the judge if there is
    one."""
    run, rewards = parts.run, {n: parts.beside[n] for n in ("reward", "judge") if parts.beside.get(n) is not None}
    if not rewards:
        return "the recipe has its own"
    if all(isinstance(reward, TextReward) for reward in rewards.values()):
        texts = [f"{n} {r.name!r} gives {float(r(['a'], ['a line']).reshape(-1)[0]):.4g}" for n, r in rewards.items()]
        return f"{', '.join(texts)} to 'a line'"
    prompts = run.prompts.batch(0, 0, 1).to(run.policy.device).take(torch.tensor([0]))
    model = run.reference()
    with torch.no_grad():
        noise = Noise(0, 0, prompts.ids, device=run.policy.device)
        latent = model.process.prior(noise.normal(model.shape))
        with LiveBytes(run.policy.device) as count:
            x = model.decode(latent)
        trial.decoding = count.peak
        values = {name: float(reward(x, prompts).reshape(-1)[0]) for name, reward in rewards.items()}
    texts = [f"{name} {rewards[name].name!r} gives {v:.4g}" for name, v in values.items()]
    return f"{', '.join(texts)} to a decoded sample of noise, {list(x.shape)}"


def memory(found: Needs, config: RunConfig, device: torch.device) -> str:
    """What the run will take at a time, beside what there is. Raises GirsanovError where it is too little."""
    total, there = ROOM * found.total, available(device)
    kept = ", ".join(f"{name} {told(n)}" for name, n in found.kept.items())
    passing = ", ".join(f"{name} {told(n)}" for name, n in found.passing.items() if n)
    text = f"{told(total)} of {told(there)}: {kept}; and for a while, one after the other, {passing}"
    if found.before:
        text += "; off the device while training: " + ", ".join(f"{name} {told(n)}" for name, n in found.before.items())
    if total > there:
        raise GirsanovError(f"{text}: lower {', '.join(advice(config))}")
    return text


def advice(config: RunConfig) -> Iterable[str]:
    """What to lower where memory is short."""
    yield "train.micro_batch"
    if hasattr(config, "groups"):
        yield "groups"
    if getattr(config, "pipeline", None) is not None:
        yield "pipeline.height and pipeline.width, or set pipeline.checkpointing=true"
    if config.precision == "fp32":
        yield "precision to bf16"
    if not config.shard:
        yield "what each process holds with shard=true on several"


def available(device: torch.device) -> int:
    """Bytes of memory of a device that a process may have, used or not."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes that share the host's memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // here


def disk(run: Run, config: RunConfig, out: Path) -> str:
    """What the checkpoints will take, beside what is free. Raises GirsanovError where it is too little."""
    one = size(run.parameters()) + size(run.policy.copies) + size([o.state_dict() for o in run.optimizers.values()])
    count = config.keep_checkpoints + 2  # the best one, and one that is being written
    free, need = free_space(out), count * one + size(run.parameters())
    text = f"{told(need)} of {told(free)} free: {count} checkpoints of {told(one)} and the weights"
    if need > free:
        raise GirsanovError(f"{text}: free some space, lower keep_checkpoints, or give another --out")
    return text


def free_space(out: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    place = next(p for p in [out.absolute(), *out.absolute().parents] if p.exists())
    return shutil.disk_usage(place).free
