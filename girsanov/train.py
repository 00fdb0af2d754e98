"""The only training loop.

    prompts -> method.collect -> Batch -> method.losses -> gradients -> optimiser -> callbacks

What it leaves out: everything a method decides. What it keeps exact: the same run on one or two processes, with any
micro-batch, and after a kill gives the same numbers, because all noise is keyed by (seed, iteration, sample) and
everything that moves is in the checkpoint.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from girsanov.distributed import Reduce
from girsanov.errors import GirsanovError
from girsanov.methods.base import Chunk, Method, State, Turn
from girsanov.noise import generator
from girsanov.policy import Policy
from girsanov.types import Batch, Prompts

SHUFFLE = 1  # noise stream of the minibatch order


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a run is trained; nothing here depends on the method.

    Attributes:
        iterations: how often a batch is collected.
        seed: key of all randomness.
        lr, betas, weight_decay, warmup, schedule: AdamW, with linear warm-up over ``warmup`` updates and a constant,
            linear or cosine rate after it.
        module_lr: rate of the method's further networks (value, critic).
        epochs: passes over a collected batch.
        minibatches: optimiser steps a pass.
        micro_batch: samples per forward and backward pass; None is all. Changes memory, not the result.
        max_grad_norm: gradient clipping; None is none.
        ema: decay of the averaged weights; None keeps none.
    """

    iterations: int = 100
    seed: int = 0
    lr: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    module_lr: float = 1e-3
    epochs: int = 1
    minibatches: int = 1
    micro_batch: int | None = None
    max_grad_norm: float | None = 1.0
    ema: float | None = None

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
        """After the last iteration, also when stopped early."""
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

    def __post_init__(self) -> None:
        self.reduce = Reduce(self.accelerator)
        self.state = self.method.setup(self.policy)
        if self.config.ema is not None:
            self.policy.keep_copy("ema")
        groups = {"policy": (self.policy.parameters(), self.config.lr)}
        for name, module in self.method.modules().items():
            module.to(self.policy.device)
            groups[name] = ([p for p in module.parameters() if p.requires_grad], self.config.module_lr)
        for name, (parameters, lr) in groups.items():
            c = self.config
            optimizer = torch.optim.AdamW(parameters, lr=lr, betas=c.betas, weight_decay=c.weight_decay)
            self.schedulers[name] = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
            self.optimizers[name] = optimizer if self.accelerator is None else self.accelerator.prepare(optimizer)

    def _rate(self, update: int) -> float:
        c = self.config
        if update < c.warmup:
            return (update + 1) / c.warmup
        u = min(1.0, (update - c.warmup) / max(1, c.iterations * c.updates - c.warmup))
        return {"constant": 1.0, "linear": 1.0 - u, "cosine": 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * u))))}[
            c.schedule
        ]

    def parameters(self) -> list[nn.Parameter]:
        """All trained parameters."""
        extra = [p for m in self.method.modules().values() for p in m.parameters() if p.requires_grad]
        return [*self.policy.parameters(), *extra]

    def stop(self, reason: str) -> None:
        """Ends the run after this iteration."""
        self.stopped = reason


def train(run: Run, callbacks: Sequence[Callback] = ()) -> Run:
    """Trains until the configured number of iterations is done, or a callback stops the run.

    Raises GirsanovError when a gradient is not finite; what was saved before stays.
    """
    for callback in callbacks:
        callback.start(run)
    try:
        while run.done < run.config.iterations and run.stopped is None:
            metrics = iterate(run)
            run.done += 1
            for callback in callbacks:
                callback.iteration(run, metrics)
    finally:
        for callback in callbacks:
            callback.end(run)
    return run


def iterate(run: Run) -> dict[str, float]:
    """One iteration: collect, then the updates; returns its metrics (``time/...`` in seconds)."""
    c, method, policy = run.config, run.method, run.policy
    turn = Turn(c.seed, run.done, c.iterations, policy.device, run.reduce)
    meter, clock = Meter(), Clock()
    prompts = run.prompts.batch(run.done, run.reduce.rank, run.reduce.world_size).to(policy.device)
    with torch.no_grad():
        batch = method.collect(policy, prompts, run.state, turn)
    meter.add(batch.metrics(), 1.0)
    clock.lap("collect")
    parts = partition(batch, c, turn)
    if c.updates > 1:
        parts = [[method.anchor(policy, micro, run.state) for micro in part] for part in parts]
        clock.lap("anchor")
    for _ in range(c.epochs):
        for part in parts:
            total = sum(len(micro) for micro in part)
            for micro in part:
                for chunk in method.losses(policy, micro, run.state):
                    share = len(micro) / total
                    backward(run, chunk.loss * share)
                    meter.add_loss(chunk, share)
                    meter.add(chunk.metrics, share)
            clock.lap("loss")
            norm = update(run)
            meter.add({"grad_norm": norm}, 1.0)
            method.after_update(policy, run.state, turn)
            clock.lap("update")
    return {**meter.result(run.reduce, c.updates), "lr": run.schedulers["policy"].get_last_lr()[0], **clock.seconds}


def partition(batch: Batch, c: TrainConfig, turn: Turn) -> list[list[Batch]]:
    """The batch as minibatches of micro-batches, in an order keyed by the iteration."""
    n = len(batch)
    if c.minibatches > n:
        raise GirsanovError(
            f"minibatches = {c.minibatches} exceeds the {n} samples of a process: lower it or collect more"
        )
    whole = c.minibatches == 1 and (c.micro_batch is None or c.micro_batch >= n)
    if whole:
        return [[batch]]
    key = (turn.seed, turn.index, SHUFFLE, turn.reduce.rank)
    order = torch.randperm(n, generator=generator(key)) if c.minibatches > 1 else torch.arange(n)
    parts = order.tensor_split(c.minibatches)
    return [[batch.take(rows) for rows in part.split(c.micro_batch or n)] for part in parts]


def backward(run: Run, loss: Tensor) -> None:
    """Backward pass, scaled under float16."""
    loss.backward() if run.accelerator is None else run.accelerator.backward(loss)


def update(run: Run) -> Tensor:
    """Averages gradients over processes, clips, steps all optimisers; the gradient norm before clipping."""
    parameters = run.parameters()
    run.reduce.average_gradients(parameters)
    if run.accelerator is not None:
        for optimizer in run.optimizers.values():
            run.accelerator.unscale_gradients(optimizer)
    limit = float("inf") if run.config.max_grad_norm is None else run.config.max_grad_norm
    norm = nn.utils.clip_grad_norm_(parameters, limit)
    scaled = run.accelerator is not None and run.accelerator.scaler is not None
    if not scaled and not bool(norm.isfinite()):
        raise GirsanovError(
            f"the gradient is not finite at iteration {run.done}: lower the learning rate, or look at the reward "
            "and the metrics just before; the last checkpoint is intact"
        )
    for name, optimizer in run.optimizers.items():
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        run.schedulers[name].step()
    if run.config.ema is not None:
        run.policy.move_copy("ema", run.config.ema)
    return norm


class Meter:
    """Weighted means of metrics, kept on the device until the iteration ends."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, float] = {}
        self.losses: set[str] = set()

    def add(self, metrics: Mapping[str, Tensor | float], weight: float) -> None:
        """Adds values to their means."""
        for name, value in metrics.items():
            share = torch.as_tensor(value).detach().double() * weight
            self.sums[name] = self.sums[name] + share if name in self.sums else share
            self.weights[name] = self.weights.get(name, 0.0) + weight

    def add_loss(self, chunk: Chunk, weight: float) -> None:
        """Adds a chunk to its module's loss, which is a sum over the chunks of an update."""
        name = "loss" if chunk.module == "policy" else f"{chunk.module}_loss"
        self.losses.add(name)
        self.add({name: chunk.loss}, weight)

    def result(self, reduce: Reduce, updates: int) -> dict[str, float]:
        """The means over chunks (losses: over updates) and over processes, as numbers."""
        names = sorted(self.sums)
        if not names:
            return {}
        counts = [float(updates) if n in self.losses else self.weights[n] for n in names]
        values = torch.stack([self.sums[n].cpu() / c for n, c in zip(names, counts, strict=True)])
        return dict(zip(names, reduce.mean_host(values).tolist(), strict=True))


class Clock:
    """Seconds of each phase of an iteration."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Books the time since the last lap under ``time/phase``."""
        now = time.perf_counter()
        self.seconds[f"time/{phase}"] = self.seconds.get(f"time/{phase}", 0.0) + now - self.last
        self.last = now


def fit(
    policy: Policy,
    method: Method,
    prompts: PromptSource,
    config: TrainConfig | None = None,
    callbacks: Iterable[Callback] = (),
) -> Run:
    """Trains on this process: the short way in for scripts and notebooks."""
    return train(Run(policy, method, config or TrainConfig(), prompts), list(callbacks))
