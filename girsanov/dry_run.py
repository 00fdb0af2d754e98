"""``girsanov run ... --dry-run``: everything that can go wrong before or in the first iteration, on a small scale.

A run is put together as it would be (settings, model, prompts, method), its reward scores one decoded sample of noise,
and one iteration is done with a single prompt and its group of samples: rollout, reward, losses, backward passes and an
optimiser step, with the run's own micro-batch. No run folder is made; embeddings of prompts go to their cache.

Memory is measured there and scaled up:

    weights + copies + gradients + optimiser         counted, after the step
    what a batch stores                              counted, times samples of a process / samples of the trial
    what backward passes keep                        counted (``memory.py``): in the losses times micro-batches,
                                                     in the collection times samples

Not counted are the autoencoder, the text encoders and the reward's own networks.
"""

import dataclasses
import os
import shutil
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from girsanov.errors import GirsanovError
from girsanov.launch import configure, limit_threads
from girsanov.memory import SavedBytes, held, size, told
from girsanov.methods.base import Turn
from girsanov.micro_batches import partition
from girsanov.noise import Noise
from girsanov.recipes import get_recipe
from girsanov.recipes.base import Assembled, RunConfig, reward_of
from girsanov.train import Run, check_reward, update

WIDTH = 110
ROOM = 1.05  # of what is counted: allocators round up


@dataclass
class Table:
    """What was looked at, a line each, printed as it comes."""

    failed: bool = False

    def add(self, name: str, text: str) -> None:
        """A line about something that is as it should be."""
        print(self.line("ok", name, text))

    def fail(self, name: str, text: str) -> None:
        """A line about something that would stop the run."""
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


@dataclass
class Trial:
    """The one small iteration, and what it took.

    Attributes:
        samples: that were asked for.
        rows: of the batch that came of them (pairs, where a method compares).
        seconds: it took.
        stored: bytes of the batch.
        collecting, losing: bytes that backward passes kept, in the collection and in the losses of a micro-batch.
        micro: rows of that micro-batch.
    """

    samples: int = 0
    rows: int = 0
    seconds: float = 0.0
    stored: int = 0
    collecting: int = 0
    losing: int = 0
    micro: int = 1


def dry_run(recipe: str, layers: Sequence[Mapping[str, Any]], out: Path, device: torch.device) -> int:
    """Checks a run and prints what was found; the exit code, 2 where the run would fail."""
    found, table = get_recipe(recipe), Table()
    config = configure(found, layers)
    print(f"girsanov run {recipe}: nothing is trained, no run folder is made")
    table.add("settings", f"{config.method.kind}, {config.train.iterations} iterations on {device}")
    parts: list[Assembled] = []

    def build() -> str:
        limit_threads(found)
        parts.append(found.build(small(config), device))
        return parts[0].description

    table.look("parts", build)
    if parts:
        for label, text in parts[0].facts.items():
            table.add(label.lower(), text)
        run, trial = parts[0].run, Trial()
        table.look("reward", lambda: scored(run, config))
        table.look("iteration", lambda: tried(run, trial))
        table.look("memory", lambda: memory(run, config, trial, device))
        table.look("disk", lambda: disk(run, config, out))
    print("the run can begin" if not table.failed else "the run would fail: mend this first")
    return 2 if table.failed else 0


def small(config: RunConfig) -> RunConfig:
    """The settings with one prompt an iteration, one update, and no more simulated pairs than that takes."""
    names = {f.name for f in dataclasses.fields(config)}
    changes: dict[str, Any] = {"train": dataclasses.replace(config.train, minibatches=1, epochs=1)}
    if "groups" in names:
        changes["groups"] = 1
    if "pairs" in names:
        changes["pairs"] = max(2, getattr(config, "group_size", 2))
    return dataclasses.replace(config, **changes)


def scored(run: Run, config: RunConfig) -> str:
    """The scores of one decoded sample of noise by the reward, and by the judge if there is one."""
    parts = {name: getattr(config, name, None) for name in ("reward", "judge")}
    rewards = {n: reward_of(p, run.policy.device) for n, p in parts.items() if p is not None}
    if not rewards:
        return "the recipe has its own"
    prompts = run.prompts.batch(0, 0, 1).to(run.policy.device).take(torch.tensor([0]))
    model = run.reference()
    with torch.no_grad():
        noise = Noise(0, 0, prompts.ids, device=run.policy.device)
        x = model.decode(model.process.prior(noise.normal(model.shape)))
        values = {name: float(reward(x, prompts).reshape(-1)[0]) for name, reward in rewards.items()}
    texts = [f"{name} {rewards[name].name!r} gives {v:.4g}" for name, v in values.items()]
    return f"{', '.join(texts)} to a decoded sample of noise, {list(x.shape)}"


def tried(run: Run, trial: Trial) -> str:
    """One iteration of one prompt."""
    began, c, method, policy = time.perf_counter(), run.config, run.method, run.policy
    turn = Turn(c.seed, 0, c.iterations, policy.device, run.reduce)
    prompts = run.prompts.batch(0, 0, 1).to(policy.device)
    with SavedBytes(policy.net) as kept, torch.no_grad():
        batch = method.collect(policy, prompts, run.state, turn)
    check_reward(run, batch)
    trial.samples, trial.rows, trial.stored, trial.collecting = len(prompts), len(batch), size(batch), kept.peak
    for micro in partition(batch, 1, c.micro_batch, turn)[0]:
        with SavedBytes(policy.net) as kept:
            for chunk in method.losses(policy, micro, run.state):
                run.steps.backward(chunk.loss * len(micro) / len(batch))
        trial.losing, trial.micro = max(trial.losing, kept.peak), max(trial.micro, len(micro))
    update(run)
    trial.seconds = time.perf_counter() - began
    return f"1 prompt, {trial.samples} sample{'s' * (trial.samples > 1)}, an optimiser step: {trial.seconds:.1f} s"


def memory(run: Run, config: RunConfig, trial: Trial, device: torch.device) -> str:
    """What the run will take at a time, beside what there is. Raises GirsanovError where it is too little."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    samples = getattr(config, "groups", 1) * getattr(config, "group_size", trial.samples) / world
    rows = samples * trial.rows / trial.samples / config.train.minibatches
    micro = min(config.train.micro_batch or rows, rows)
    trained = size(run.parameters())
    own = [p for n, p in zip(run.policy.names, run.policy.parameters(), strict=True) if "lora_" not in n]
    uses = {
        "weights": held(run.policy.net),
        "reference and moving copies": size(own) + size(run.policy.copies),
        "gradients": trained,
        "optimiser": size([o.state_dict() for o in run.optimizers.values()]),
        f"batch of {samples:.0f}": trial.stored * samples / trial.samples,
        f"backward passes, {micro:.0f} at a time": max(
            trial.losing * micro / trial.micro, trial.collecting * samples / trial.samples
        ),
    }
    total, there = ROOM * sum(uses.values()), available(device)
    text = f"{told(total)} of {told(there)}: " + ", ".join(f"{name} {told(n)}" for name, n in uses.items() if n)
    if total > there:
        raise GirsanovError(f"{text}: lower {', '.join(advice(config))}")
    return f"{text} (autoencoder, text encoders and rewards come on top)"


def advice(config: RunConfig) -> Iterable[str]:
    """What to lower where memory is short."""
    yield "train.micro_batch"
    if hasattr(config, "groups"):
        yield "groups"
    if getattr(config, "pipeline", None) is not None:
        yield "pipeline.height and pipeline.width, or set pipeline.checkpointing=true"
    if config.precision == "fp32":
        yield "precision to bf16"


def available(device: torch.device) -> int:
    """Bytes of memory of a device, used or not."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


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
