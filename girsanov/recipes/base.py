"""What a recipe is: a typed configuration, and how model, reward, method and evaluation are put together from it."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from girsanov.config import Part, make
from girsanov.errors import GirsanovError
from girsanov.methods.base import Method
from girsanov.models import Model, ModelLike
from girsanov.policy import Policy
from girsanov.report.svg import Line
from girsanov.rewards.base import Reward
from girsanov.settings import Count, Positive, settings
from girsanov.sharding import Sharding
from girsanov.train import Run, TrainConfig
from girsanov.weights import is_lora

AlarmName = Literal[
    "reward-hacking", "not-finite", "kl-range", "ratio-not-one", "zero-variance", "all-dropped", "old-is-current"
]


@settings
class RunConfig:
    """What every recipe's configuration holds; a recipe derives from it and adds its own.

    Attributes:
        method: the method and its options.
        train: iterations, learning rate and the like.
        lora: rank of the adapters to train instead of all weights; None trains all weights.
        precision: of the networks' arithmetic; "fp16" scales the loss.
        compile: put the trained network through ``torch.compile`` (``girsanov/compiling.py``).
        shard: split the network over the processes of a launch, instead of holding all of it on each.
        evaluate_every: iterations between evaluations.
        checkpoint_every: iterations between checkpoints.
        keep_checkpoints: how many of the newest checkpoints stay; the best one stays as well.
        kl_max: a KL above this rings an alarm.
        stop_on: alarms that end the run.
        patience: so many evaluations in a row without a better judge (or reward, without a judge) end it, too.
        pictures_every: iterations between sheets of the same few samples in ``samples/``; None draws before and after.
        trackers: where metrics go besides the run folder.
    """

    method: Part[Method] = Part("ode-am")
    train: TrainConfig = TrainConfig()
    lora: Count | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    shard: bool = False
    evaluate_every: Count = 10
    checkpoint_every: Count = 10
    keep_checkpoints: Count = 2
    kl_max: Positive | None = None
    stop_on: tuple[AlarmName, ...] = ()
    patience: Count | None = None
    pictures_every: Count | None = None
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()

    @property
    def autocast(self) -> torch.dtype | None:
        """dtype of the networks' arithmetic, None for that of the samples."""
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    def policy(self, model: Model, guidance: Mapping[str, float] | None = None) -> Policy:
        """The model as a policy, with adapters and precision as configured. Its network is changed in place."""
        if self.lora is not None:
            from girsanov.adapters.lora import add_lora

            add_lora(model.net, rank=self.lora, seed=self.train.seed)
        net: Any = model.net
        sharding = self.split(net, next(net.parameters()).device)
        return Policy(dataclasses.replace(model, autocast=self.autocast), guidance, sharding)

    def split(self, net: nn.Module, device: torch.device) -> Sharding | None:
        """Splits the network over the processes, if that is set and there are several; None leaves it whole.

        Raises GirsanovError for settings that do not go together with it.
        """
        if not self.shard or not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
            return None
        if self.precision == "fp16":
            raise GirsanovError("shard=true does not scale losses: take precision=bf16 instead of fp16")
        if self.train.optimizer != "adamw" and not all(
            is_lora(n) for n, p in net.named_parameters() if p.requires_grad
        ):
            raise GirsanovError(
                f"shard=true splits the optimiser's averages, which {self.train.optimizer} cannot be: take "
                "train.optimizer=adamw, or train adapters with lora=16"
            )
        return Sharding(net, device)


def reward_of(part: Part[Reward], device: torch.device) -> Reward:
    """The reward that a part describes, loaded for samples on ``device``: what it lacks is told before any work."""
    reward = make(Reward, part)
    reward.prepare(device)
    return reward


@dataclass(frozen=True)
class Metric:
    """A number of the evaluation, as reports show it.

    Attributes:
        key: its name in the evaluation; "reward", "judge", "diversity" and "kl" have a place of their own.
        label: what people call it.
        better: whether high or low is good, if either is.
        percent: show it in percent.
    """

    key: str
    label: str
    better: Literal["high", "low"] | None = None
    percent: bool = False

    @property
    def sign(self) -> float:
        """1 if high is good, -1 if low is."""
        return -1.0 if self.better == "low" else 1.0


@dataclass(frozen=True)
class Samples:
    """Decoded samples [n, *D], and what each was asked to be (or nothing).

    Attributes:
        x: the samples.
        labels: what each was asked to be.
        texts: prompt and completion of each, where samples are read; reports then show these and no picture.
    """

    x: Tensor
    labels: tuple[str, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Drawing:
    """A chart of what a run has learned, for its report.

    Attributes:
        title, x_label: of the chart.
        lines: what it shows.
        note: a sentence below.
    """

    title: str
    x_label: str
    lines: Sequence[Line]
    note: str = ""


@dataclass(frozen=True)
class Assembled:
    """A recipe put together.

    Attributes:
        run: what is trained.
        evaluate: ``evaluate(run)`` -> numbers of ``run.model()`` on fixed noise; ``NAME_se`` is a standard error.
        sample: ``sample(model, n, seed)`` -> samples; the same seed gives the same noise and requests.
        draw: samples as one picture, PNG bytes.
        metrics: the evaluation's numbers that reports show, in order.
        description: what is tuned to what, in a sentence or two, for reports and model cards.
        facts: further facts for the report, label -> text (the judge's accuracy on real data, the exact answer).
        frontier: (KL, reward) of the best that is possible, where it is known: a line in the report.
        pictured: how many samples the report's pictures show.
        write: writes samples one by one into a folder; None writes an array.
        export: ``export(run, folder)`` writes the tuned weights for other software and returns the line that loads
            them; None writes none. All processes call it, process 0 writes.
        captions: of the pictures before and after.
        drawings: ``drawings(run)`` -> what the run has learned beside the exact answer, for the report.
        beside: what a run holds beside its network, by what people call it: the "reward", the "judge", the "text
            encoders", the "autoencoder"; a dry run counts the networks in it.
    """

    run: Run
    evaluate: Callable[[Run], dict[str, float]]
    sample: Callable[[ModelLike, int, int], Samples]
    draw: Callable[[Samples], bytes]
    metrics: tuple[Metric, ...]
    description: str
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    write: Callable[[Samples, Path], None] | None = None
    frontier: Sequence[tuple[float, float]] = ()
    pictured: int = 64
    export: Callable[[Run, Path], str] | None = None
    captions: tuple[str, str] = ("the pretrained model", "the tuned model")
    drawings: Callable[[Run], Sequence[Drawing]] | None = None
    beside: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def metric(self, key: str) -> Metric | None:
        """The metric with a key, if there is one."""
        return next((m for m in self.metrics if m.key == key), None)


class Recipe(ABC):
    """One way to set up a run.

    Attributes:
        name: on the command line.
        summary: one line for ``girsanov list``.
        config: its configuration class.
        methods: the methods it has settings for; others may work too.
        splits: whether ``shard`` is possible: its network is worth it, and every process runs it equally often.
        threads: processor threads that its networks can use; the environment's OMP_NUM_THREADS goes before it. None
            leaves it to torch.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    config: ClassVar[type[RunConfig]]
    methods: ClassVar[Sequence[str]]
    splits: ClassVar[bool] = False
    threads: ClassVar[int | None] = None

    def defaults(self, method: str) -> dict[str, Any]:
        """Settings that suit a method, under those of the user: ``{"train": {"lr": ...}, "method": {...}}``."""
        return {}

    def complete(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """What follows from the user's settings, under them (the data's shape for a network of another kind)."""
        return {}

    @abstractmethod
    def build(self, config: Any, device: torch.device, accelerator: Any = None) -> Assembled:
        """Puts a run together; deterministic, so that a resumed run finds the same parts."""

    def evaluate_folder(self, path: Path, device: torch.device) -> dict[str, float]:
        """Numbers of a folder of pictures."""
        raise GirsanovError(f"the recipe {self.name} cannot evaluate pictures: give the folder of a run")
