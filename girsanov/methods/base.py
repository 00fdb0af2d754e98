"""What a method is: something that collects a batch and turns it into losses. The loop in ``train.py`` does the rest.

``collect`` holds all the randomness and all the statistics over processes; ``losses`` is a pure function of its
batch, called once a micro-batch, and yields the loss in chunks (one a step, say) so that memory does not grow with
the number of steps. The chunks of a batch sum to the mean loss of its samples.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from girsanov.distributed import Reduce
from girsanov.models import ModelLike
from girsanov.noise import Noise
from girsanov.policy import USES, Policy, Use
from girsanov.types import Batch, Prompts

Data = Literal["prompts", "pairs", "labels", "lists"]
"""What ``collect`` takes: requests to sample, pairs of a preferred and another sample, labelled samples, rankings."""

State = dict[str, Any]
"""What a method moves (window position, running statistics): tensors, numbers, strings, lists; saved in every
checkpoint."""


@dataclass(frozen=True)
class Turn:
    """The iteration at hand: the key of all its noise, and the way to the other processes.

    Attributes:
        seed: the run's seed.
        index: the iteration, from 0.
        total: the number of iterations of the run.
        device: where noise is made.
        reduce: statistics over all processes.
    """

    seed: int
    index: int
    total: int = 1
    device: torch.device = torch.device("cpu")
    reduce: Reduce = field(default_factory=Reduce)

    def noise(self, ids: Tensor, stream: int = 0) -> Noise:
        """Noise for the samples with these ids; another stream for another purpose."""
        return Noise(self.seed, self.index, ids, stream, self.device)


@dataclass(frozen=True)
class Chunk:
    """A part of a loss.

    Attributes:
        loss: scalar with a graph. The chunks of a batch sum to its mean loss.
        metrics: numbers to log; a metric's value is the mean over the chunks that carry it.
        module: which of the method's networks the loss trains.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)
    module: str = "policy"


class Method(ABC):
    """A way to tune a policy. A subclass is a frozen dataclass of its parts (sampler, grid, reward, ...) and checks
    at construction that they fit together.

    Attributes:
        data: what ``collect`` takes.
        guided: the uses of the policy that classifier-free guidance is meant for, unless a recipe is told another.
        absent: settings of other methods that this one has no use for, and why; what a configuration is told.
    """

    data: ClassVar[Data] = "prompts"
    guided: ClassVar[tuple[Use, ...]] = USES
    absent: ClassVar[Mapping[str, str]] = {
        "storage": "is refused: this method goes back to no states of a chain, so there are none to keep in half "
        "precision; leave it out"
    }

    def setup(self, policy: Policy) -> State:
        """The method's moving state at iteration 0; starts moving copies of the policy if it needs them."""
        return {}

    def modules(self) -> dict[str, nn.Module]:
        """Further networks to train (value, critic), each with its own optimiser."""
        return {}

    def deploy(self, policy: Policy, name: str = "current", strength: float = 1.0) -> ModelLike:
        """The model as it is meant to be sampled after tuning: the named weights, at a strength of the tuning."""
        return policy.view(name, "rollout", strength)

    @abstractmethod
    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """Gathers the data of an iteration, without a graph. The only place that draws random numbers."""

    def anchor(self, policy: Policy, batch: Batch, state: State) -> Batch:
        """Scores a micro-batch before the first of several updates (old means); called in the layout of training."""
        return batch

    @abstractmethod
    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """The loss of a micro-batch, in chunks. Draws nothing: called twice it gives the same bits."""

    def after_update(self, policy: Policy, state: State, turn: Turn) -> None:  # noqa: B027 (nothing is a valid answer)
        """Moves what moves, after every optimiser step."""
