"""The only training loop.

    prompts -> method.collect -> Batch -> method.losses -> gradients -> optimiser -> callbacks

What it leaves out: everything a method decides. What it keeps exact: the same run on one or two processes, with any
micro-batch, and after a kill gives the same numbers, because all noise is keyed by (seed, iteration, sample) and
everything that moves is in the checkpoint.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from girsanov.clock import Clock
from girsanov.distributed import Reduce
from girsanov.errors import GirsanovError
from girsanov.fitting import accumulate, anchor, collect
from girsanov.meters import Meter
from girsanov.methods.base import Method, State, Turn
from girsanov.micro_batches import partition
from girsanov.models import ModelLike
from girsanov.optimizers import OPTIMIZERS, SCHEDULES
from girsanov.policy import Policy
from girsanov.settings import Count, Decay, Natural, NonNegative, Positive, settings
from girsanov.steps import steps_of
from girsanov.types import Batch, Prompts


@settings
class TrainConfig:
    """How a run is trained; nothing here depends on the method.

    Attributes:
        iterations: how often a batch is collected.
        seed: key of all randomness.
        lr, betas, weight_decay, warmup, schedule: AdamW, with linear warm-up over ``warmup`` updates and a constant,
            linear or cosine rate after it.
        optimizer: "adamw8bit" keeps AdamW's averages of the policy in 8 bits: a quarter of their memory, on a GPU.
        module_lr: rate of the method's further networks (value, critic).
        epochs: passes over a collected batch.
        minibatches: optimiser steps a pass.
        micro_batch: samples per forward and backward pass; None is all. Changes memory, not the result.
        max_grad_norm: gradient clipping; None is none.
        ema: decay of the averaged weights; None keeps none.
    """

    iterations: Count = 100
    seed: Natural = 0
    lr: Positive = 5e-4
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: NonNegative = 0.0
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    warmup: Natural = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    module_lr: Positive = 1e-3
    epochs: Count = 1
    minibatches: Count = 1
    micro_batch: Count | None = None
    max_grad_norm: Positive | None = 1.0
    ema: Decay | None = None

    @property
    def updates(self) -> int:
        """Optimiser steps an iteration."""
        return self.epochs * self.minibatches


class PromptSource(Protocol):
    """Where requests come from: a pure function of the iteration, so resuming needs no position."""

    def batch(self, iteration: int, rank: int, world_size: int) -> Prompts:
        """This process's requests; ids and groups count over all processes."""
        ...


class Callback(Protocol):
    """What happens around iterations: logging, evaluation, checkpoints, alarms."""

    def start(self, run: "Run") -> None:
        """Before the first iteration (also of a resumed run)."""
        ...

    def iteration(self, run: "Run", metrics: dict[str, float]) -> None:
        """After each iteration; may add to the metrics, call ``run.stop(reason)`` or raise."""
        ...

    def end(self, run: "Run") -> None:
        """After the last iteration, also when stopped early; ``run.failed`` tells an exception from an end."""
        ...


@dataclass
class Run:
    """A run in progress: everything that moves. ``checkpoint.py`` saves and restores it.

    Attributes:
        policy, method, config, prompts: the parts.
        done: iterations finished.
        state: the method's state.
        optimizers, schedulers: by module name.
        reduce: the other processes.
        stopped: why the run ends early, if it does.
        failed: whether an exception ended it, maybe in the middle of an iteration.
        callback_state: what callbacks want saved.
    """

    policy: Policy
    method: Method
    config: TrainConfig
    prompts: PromptSource
    accelerator: Any = None
    done: int = 0
    state: State = field(default_factory=dict)
    optimizers: dict[str, Any] = field(default_factory=dict)
    schedulers: dict[str, torch.optim.lr_scheduler.LRScheduler] = field(default_factory=dict)
    callback_state: dict[str, Any] = field(default_factory=dict)
    stopped: str | None = None
    failed: bool = False

    def __post_init__(self) -> None:
        self.reduce = Reduce(self.accelerator)
        self.steps = steps_of(self.reduce, self.config.max_grad_norm)
        self.state = self.method.setup(self.policy)
        if self.config.ema is not None:
            self.policy.keep_copy("ema")
        groups = {"policy": (self.policy.parameters(), self.config.lr)}
        for name, module in self.method.modules().items():
            module.to(self.policy.device)
            groups[name] = ([p for p in module.parameters() if p.requires_grad], self.config.module_lr)
        optimizers: dict[str, torch.optim.Optimizer] = {}
        for name, (parameters, lr) in groups.items():
            c = self.config
            for p in parameters:
                p.grad = None  # what is left of an earlier training (pretraining just now) is no part of this one
            adamw = OPTIMIZERS[c.optimizer if name == "policy" else "adamw"]()
            optimizers[name] = adamw(parameters, lr=lr, betas=c.betas, weight_decay=c.weight_decay)
            rate = functools.partial(SCHEDULES[c.schedule], c.warmup, c.iterations * c.updates)
            self.schedulers[name] = torch.optim.lr_scheduler.LambdaLR(optimizers[name], rate)
        self.optimizers = self.steps.prepare(self.policy.net, optimizers)

    def parameters(self) -> list[nn.Parameter]:
        """All trained parameters."""
        extra = [p for m in self.method.modules().values() for p in m.parameters() if p.requires_grad]
        return [*self.policy.parameters(), *extra]

    def model(self, strength: float = 1.0) -> ModelLike:
        """The model as it is sampled after tuning: the averaged weights if there are any, else the current ones."""
        return self.method.deploy(self.policy, "current" if self.config.ema is None else "ema", strength)

    def reference(self) -> ModelLike:
        """The model as it was before tuning."""
        return self.policy.view("reference", "rollout")

    def stop(self, reason: str) -> None:
        """Ends the run after this iteration (on all processes, whichever asks)."""
        self.stopped = reason

    @property
    def finished(self) -> bool:
        """Whether no iteration is left to do; the processes agree on it."""
        if self.done >= self.config.iterations:
            return True
        return bool(self.reduce.mean_host(torch.tensor(float(self.stopped is not None))) > 0)


def train(run: Run, callbacks: Sequence[Callback] = ()) -> Run:
    """Trains until the configured number of iterations is done, or a callback stops the run.

    Raises GirsanovError when a gradient is not finite; what was saved before stays.
    """
    for callback in callbacks:
        callback.start(run)
    try:
        while not run.finished:
            metrics = iterate(run)
            run.done += 1
            for callback in callbacks:
                callback.iteration(run, metrics)
    except BaseException:
        run.failed = True
        raise
    finally:
        for callback in callbacks:
            callback.end(run)
    return run


def iterate(run: Run) -> dict[str, float]:
    """One iteration: collect, then the updates; returns its metrics (``time/...`` in seconds)."""
    c, policy = run.config, run.policy
    turn = Turn(c.seed, run.done, c.iterations, policy.device, run.reduce)
    meter = Meter()
    with Clock.running(policy.device) as clock:
        prompts = run.prompts.batch(run.done, run.reduce.rank, run.reduce.world_size).to(policy.device)
        batch = collect(run, prompts, turn)
        check_reward(run, batch)
        meter.add(batch.metrics(), 1.0)
        clock.lap("collect")
        parts: list[Sequence[Batch]] = list(partition(batch, c.minibatches, c.micro_batch, turn))
        if c.updates > 1:
            parts = [anchor(run, part) for part in parts]
            clock.lap("anchor")
        for epoch in range(c.epochs):
            for i in range(len(parts)):
                parts[i] = accumulate(run, parts[i], meter, first=epoch == i == 0)
                clock.lap("loss")
                meter.add(update(run), 1.0)
                run.method.after_update(policy, run.state, turn)
                clock.lap("update")
        return {
            **meter.result(run.reduce, c.updates),
            "lr": float(run.schedulers["policy"].get_last_lr()[0]),
            "samples": float(len(batch) * run.reduce.world_size),
            **clock.result(),
        }


def update(run: Run) -> dict[str, Tensor | float]:
    """Steps all optimisers (``steps.py``), rates and the averaged weights; the gradient norm before clipping.

    Under float16 a step whose gradients overflow is skipped as a whole, averages and rates included.
    """
    step = run.steps.step(run.parameters(), run.optimizers)
    if step.skipped is None and not bool(step.norm.isfinite()):
        raise GirsanovError(
            f"the gradient is not finite at iteration {run.done}: lower the learning rate, or look at the reward "
            "and the metrics just before; the last checkpoint is intact"
        )
    if not step.skipped:
        for scheduler in run.schedulers.values():
            scheduler.step()
        if run.config.ema is not None:
            run.policy.move_copy("ema", run.config.ema)
    metrics: dict[str, Tensor | float] = {} if step.skipped else {"grad_norm": step.norm}
    return metrics if step.skipped is None else {**metrics, "skipped": float(step.skipped)}


def check_reward(run: Run, batch: Batch) -> None:
    """Raises GirsanovError if a sample's reward is not finite, unless the method has masked the sample."""
    reward, mask = getattr(batch, "reward", None), getattr(batch, "mask", True)
    bad = int((~reward.isfinite() & mask).sum()) if isinstance(reward, Tensor) else 0
    if bad:
        raise GirsanovError(
            f"the reward of {bad} of {len(batch)} samples is not finite at iteration {run.done}: clamp what the "
            "reward divides by or takes the log of; the last checkpoint is intact"
        )


def fit(
    policy: Policy,
    method: Method,
    prompts: PromptSource,
    config: TrainConfig | None = None,
    callbacks: Iterable[Callback] = (),
) -> Run:
    """Trains on this process: the short way in for scripts and notebooks."""
    return train(Run(policy, method, config or TrainConfig(), prompts), list(callbacks))
