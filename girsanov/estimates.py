r"""What a run takes of the memory of each process: measured in one small iteration, scaled to the run's own.

Held from the first step to the last, counted as bytes of tensors:

    weights, reference and moving copies, gradients, optimiser, the batch
    rewards, judge and whatever else the recipe keeps on the device (``Assembled.beside``)

and the largest of what comes for a while: the losses of a micro-batch (forward and backward, with what checkpointing
computes again), the collection of a lot of samples, the decoder at work on a chunk, an optimiser step.

``shard`` with P processes: frozen weights are divided by P, and so is everything that belongs to a trained weight
unless adapters alone are trained; with all weights each view is a network of its own, frozen parts included. A pass
gathers what belongs to no block and two blocks, as the next one comes while one is at work; with all weights their
gradients as well. Where the dry run itself is launched on P processes and split, its parts are measured as they are;
the weights that come and go are arithmetic still, and what lives within a pass is what its graph keeps
(``SavedBytes``).
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from typing import Any, cast

import torch
from torch import nn

from girsanov.adapters.latents import Decoder
from girsanov.distributed import is_split
from girsanov.memory import LiveBytes, SavedBytes, held, size, tensors
from girsanov.methods.base import Turn
from girsanov.micro_batches import partition
from girsanov.recipes.base import RunConfig
from girsanov.sharding import Twins, blocks
from girsanov.train import Run, check_reward, update
from girsanov.weights import is_lora


@dataclass
class Trial:
    """The one small iteration, and what it took.

    Attributes:
        world: processes that did it together.
        samples: that this one was asked for.
        rows: of the batch that came of them (pairs, where a method compares).
        seconds: it took.
        stored: bytes of the batch.
        collecting, losing, updating: bytes that came for a while in the collection, in the losses of a micro-batch and
            in the optimiser step.
        decoding: bytes for one sample in the decoder; its weights are counted apart.
        micro: rows of that micro-batch.
    """

    world: int = 1
    samples: int = 0
    rows: int = 0
    seconds: float = 0.0
    stored: int = 0
    collecting: int = 0
    losing: int = 0
    updating: int = 0
    decoding: int = 0
    micro: int = 1


def tried(run: Run, trial: Trial) -> str:
    """One iteration of one prompt a process, measured."""
    began, c, method, policy = time.perf_counter(), run.config, run.method, run.policy
    turn = Turn(c.seed, 0, c.iterations, policy.device, run.reduce)
    prompts = run.prompts.batch(0, run.reduce.rank, run.reduce.world_size).to(policy.device)
    with counted(run) as count, undecoded(run, count), torch.no_grad():
        batch = method.collect(policy, prompts, run.state, turn)
    check_reward(run, batch)
    trial.world, trial.samples, trial.rows, trial.stored = run.reduce.world_size, len(prompts), len(batch), size(batch)
    trial.collecting = max(0, count.peak - (trial.stored if isinstance(count, LiveBytes) else 0))
    for micro in partition(batch, 1, c.micro_batch, turn)[0]:
        before = gradients(run)
        with counted(run) as count:
            for chunk in method.losses(policy, micro, run.state):
                run.steps.backward(chunk.loss * len(micro) / len(batch))
        grown = gradients(run) - before if isinstance(count, LiveBytes) else 0
        trial.losing, trial.micro = max(trial.losing, count.peak - grown), max(trial.micro, len(micro))
    before = size(states(run))
    with counted(run) as count:
        update(run)
    trial.updating = max(0, count.peak - (size(states(run)) - before)) if isinstance(count, LiveBytes) else 0
    trial.seconds = time.perf_counter() - began
    many = "1 prompt" if trial.world == 1 else f"{trial.world} prompts on {trial.world} processes"
    return f"{many}, {trial.samples} sample{'s' * (trial.samples > 1)}, an optimiser step: {trial.seconds:.1f} s"


@contextmanager
def counted(run: Run) -> Iterator[LiveBytes | SavedBytes]:
    """Counts what is made inside, or what graphs keep where the network is split."""
    with SavedBytes(run.policy.net) if split(run) else LiveBytes(run.policy.device) as count:
        yield count


@contextmanager
def undecoded(run: Run, count: LiveBytes | SavedBytes) -> Iterator[None]:
    """Leaves the decoder out of the count: it works on a chunk at a time, however many samples there are."""
    decoder = getattr(run.policy.model, "decode", None)
    if not isinstance(decoder, Decoder) or not isinstance(count, LiveBytes):
        yield
        return
    to_data, module = decoder.to_data, cast(Any, decoder.module)

    def quietly(what: Any) -> Any:
        def call(*args: Any) -> Any:
            if torch.is_grad_enabled() and any(t.requires_grad for t in tensors(args)):
                return what(*args)
            with count.paused():
                return what(*args)

        return call

    decoder.to_data, module.to = quietly(to_data), quietly(module.to)
    try:
        yield
    finally:
        decoder.to_data = to_data
        del module.to


def gradients(run: Run) -> int:
    """Bytes of the gradients that are there."""
    return size([p.grad for p in run.parameters() if p.grad is not None])


def states(run: Run) -> list[Any]:
    """What the optimisers keep."""
    return [dict(o.state) for o in run.optimizers.values()]


def split(run: Run) -> bool:
    """Whether the network is split over processes now."""
    return any(is_split(p) for p in run.policy.net.parameters())


# ---- the run's own size


@dataclass(frozen=True)
class Needs:
    """Bytes by what they are for.

    Attributes:
        kept: as long as the run lasts.
        passing: for a while, one after the other.
        before: of networks that are on the device before training alone, together with nothing else.
    """

    kept: Mapping[str, float]
    passing: Mapping[str, float]
    before: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """The most at a time."""
        largest = max(self.passing.values(), default=0.0)
        return max(sum(self.kept.values()) + largest, sum(self.before.values()))


def needs(run: Run, config: RunConfig, tiny: RunConfig, trial: Trial, beside: Mapping[str, Any], world: int) -> Needs:
    """What each of ``world`` processes takes of its device.

    Args:
        run: after its trial.
        config, tiny: the run's settings, and those of the trial.
        trial: what was measured.
        beside: what else the recipe holds, by name.
        world: the processes of the run; those of the trial, or the trial was made by one.
    """
    samples = trial.samples * growth(run, config, tiny) * trial.world / world
    rows = samples * trial.rows / trial.samples / config.train.minibatches
    micro = min(config.train.micro_batch or rows, rows)
    lot = min(getattr(run.method, "rollout_micro_batch", None) or samples, samples)
    shared = network(run, world if config.shard and not split(run) else 1)
    passing = {
        f"losses of {micro:.0f} at a time": trial.losing * micro / trial.micro,
        f"collecting {lot:.0f} at a time": trial.collecting * lot / trial.samples,
        "an optimiser step": trial.updating * shared["gradients"] / max(1, size(run.parameters())),
    }
    aside = dict[str, float]()
    for name, thing in beside.items():
        there, all_of_it = on_device(thing, run.policy.device)
        if there:
            shared[name] = there
        elif name == "autoencoder":
            passing["decoding"] = all_of_it
        else:
            aside[name] = all_of_it
    decoder = getattr(run.policy.model, "decode", None)
    if isinstance(decoder, Decoder):
        at_a_time = min(decoder.chunk, samples)
        passing[f"decoding {at_a_time:.0f} at a time"] = passing.pop("decoding", 0.0) + trial.decoding * at_a_time
    if config.shard and world > 1:
        shared["blocks that a pass gathers"] = in_flight(run)
    shared[f"batch of {samples:.0f}"] = trial.stored * samples / trial.samples
    return Needs({k: v for k, v in shared.items() if v}, passing, {k: v for k, v in aside.items() if v})


def growth(run: Run, config: RunConfig, tiny: RunConfig) -> float:
    """How many times the requests of the trial the run makes: those of its groups, or rows where texts are compared."""
    asked: Any = config
    if hasattr(run.policy.model, "encoder") and not hasattr(run.prompts, "groups_per_batch"):
        rows: int = cast(Any, run.prompts).batch_size  # as many as there are, unless fewer were drawn for the trial
        return float(min(asked.batch, asked.pairs) / rows) if hasattr(config, "pairs") else 1.0
    return float(asked.groups / cast(Any, tiny).groups) if hasattr(config, "groups") else 1.0


def network(run: Run, p: int) -> dict[str, float]:
    """What belongs to the trained network, of which p processes would share what is whole here."""
    policy, weights = run.policy, cast(Any, run.policy.weights)
    own = [x for m in run.method.modules().values() for x in m.parameters()]
    trained, further = float(size(policy.parameters())), size(own)
    net, optimiser = float(held(policy.net)), float(size(states(run)))
    adapters = all(map(is_lora, policy.names))
    whole_net = size(list(policy.net.parameters()))
    if isinstance(weights, Twins):
        views = float(sum(size(list(n.parameters())) for n in (weights.reference, *weights.twins.values())))
    elif p > 1 and not adapters:
        views = whole_net * (1 + len(policy.copies))
    else:
        views = size(weights.reference, policy.copies)
    extra = optimiser * further / max(1, trained + further)
    if p > 1 and adapters:
        net = net - (whole_net - trained) * (p - 1) / p
    elif p > 1:
        net, views, trained = net - whole_net * (p - 1) / p, views / p, trained / p
        optimiser = extra + (optimiser - extra) / p
    return {
        "weights": net + further,
        "reference and moving copies": views,
        "gradients": trained + further,
        "optimiser": optimiser,
    }


def in_flight(run: Run) -> float:
    """Bytes of the weights that a pass has gathered at most, and of their gradients where all weights are trained."""
    net, adapters = run.policy.net, all(map(is_lora, run.policy.names))

    def count(parameters: Iterable[tuple[str, nn.Parameter]]) -> float:
        return float(sum(p.numel() * p.element_size() for n, p in parameters if not (adapters and is_lora(n))))

    parts = parts_of(net)
    inside = {id(p) for part in parts for p in part.parameters()}
    root = count((n, p) for n, p in net.named_parameters() if id(p) not in inside)
    largest = max((count(part.named_parameters()) for part in parts), default=0.0)
    return (root + 2 * largest) * (1 if adapters else 2)


def parts_of(net: nn.Module) -> list[nn.Module]:
    """What a network is gathered by, whether it is split yet or not."""
    if not any(is_split(p) for p in net.parameters()):
        return blocks(net)
    from torch.distributed.fsdp import FSDPModule

    return [m for m in net.modules() if m is not net and isinstance(m, FSDPModule)]


# ---- what a recipe holds beside its network


def on_device(thing: Any, device: torch.device) -> tuple[int, int]:
    """Bytes of the networks in something: those on a device, and all."""
    every = [t for net in networks(thing) for t in (*net.parameters(), *net.buffers())]
    return size([t for t in every if t.device.type == device.type]), size(every)


def networks(thing: Any, seen: set[int] | None = None) -> Iterator[nn.Module]:
    """The networks in an object: in its attributes, in lists and mappings, as deep as this package's own objects go."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, nn.Module):
        yield thing
        return
    inner: Iterable[Any] = ()
    if isinstance(thing, Mapping):
        inner = thing.values()
    elif isinstance(thing, Sequence) and not isinstance(thing, str):
        inner = thing
    elif type(thing).__module__.startswith("girsanov.") or is_dataclass(thing):
        inner = getattr(thing, "__dict__", {}).values()
    for part in list(inner):
        yield from networks(part, seen)
