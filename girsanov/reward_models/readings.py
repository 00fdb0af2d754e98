"""Readings: what stands between the items of a preference file and the network, and which network reads that.

==========  ==================================================  =======================================================
reading     front                                               network
==========  ==================================================  =======================================================
ByBytes     bytes of texts                                      a small transformer
ByPixels    pictures as squares                                 a residual MLP on pixels
ByFeatures  features of a frozen model (CLIP, a causal LM)      a head, linear or an MLP
ByAdapters  tokens of a causal LM                               the model with adapters and a head
ByGate      features of a frozen model                          heads of rated objectives, weighed by a gate
==========  ==================================================  =======================================================
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from girsanov.errors import GirsanovError
from girsanov.reward_models.causal import CausalConfig
from girsanov.reward_models.fronts import Bytes, Front, Squares, WithLength, requests
from girsanov.reward_models.gated import GatedConfig
from girsanov.reward_models.kinds import front_for
from girsanov.reward_models.objectives import LENGTH, Objective, fit_objectives, names_of, rated_items
from girsanov.reward_models.rows import Rows, read_rows
from girsanov.reward_models.scorers import FeaturesConfig, LinearConfig, PixelsConfig, ScorerConfig, TextConfig
from girsanov.settings import unknown
from girsanov.types import Cond

HEADS: dict[str, type[LinearConfig] | type[FeaturesConfig]] = {"linear": LinearConfig, "mlp": FeaturesConfig}
"""Heads on features of a frozen model by name."""


@dataclass(frozen=True)
class Made:
    """What a reading makes of the items of a file.

    Attributes:
        front: what made them; it goes with the model.
        config: the network.
        items: [N, K, *D].
        cond: conditions of the N prompts, or None.
        net: a network of the configuration that is prepared, or None.
        objectives: what its heads predict, where it has several.
    """

    front: Front
    config: ScorerConfig
    items: Tensor
    cond: Cond | None = None
    net: nn.Module | None = None
    objectives: tuple[Objective, ...] = ()


class Reading(ABC):
    """How a file is read."""

    @property
    @abstractmethod
    def front(self) -> Front:
        """What stands between items and network."""

    @abstractmethod
    def make(self, rows: Rows, items: Tensor, held_out: float, seed: int) -> Made:
        """The network for what the front gave of the rows, [N, K, *D]."""


@dataclass(frozen=True)
class ByBytes(Reading):
    """Texts as bytes, at most ``length`` of them."""

    length: int = 256
    members: int = 1

    @property
    def front(self) -> Front:
        """Bytes."""
        return Bytes(self.length)

    def make(self, rows: Rows, items: Tensor, held_out: float, seed: int) -> Made:
        """A small transformer."""
        return Made(self.front, TextConfig(length=self.length, members=self.members), items)


@dataclass(frozen=True)
class ByPixels(Reading):
    """Pictures as squares of ``size`` pixels; one channel if all of them are grey."""

    size: int = 16
    members: int = 1

    @property
    def front(self) -> Front:
        """Coloured squares."""
        return Squares(self.size)

    def make(self, rows: Rows, items: Tensor, held_out: float, seed: int) -> Made:
        """A residual MLP on pixels."""
        channels = 1 if bool((items == items[:, :, :1]).all()) else 3
        items = items[:, :, :channels].contiguous()
        shape = (channels, self.size, self.size)
        return Made(Squares(self.size, channels), PixelsConfig(shape=shape, members=self.members), items)


@dataclass(frozen=True)
class ByFeatures(Reading):
    """Features of a frozen model with a head of ``HEADS``."""

    features: Front
    head: str = "linear"
    members: int = 1

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise GirsanovError(f"{self.head!r} {unknown(self.head, HEADS, 'head')}")

    @property
    def front(self) -> Front:
        """The features."""
        return self.features

    def make(self, rows: Rows, items: Tensor, held_out: float, seed: int) -> Made:
        """The head."""
        return Made(self.front, HEADS[self.head](features=items.shape[2], members=self.members), items)


@dataclass(frozen=True)
class ByAdapters(Reading):
    """A causal language model with adapters."""

    config: CausalConfig

    @property
    def front(self) -> Front:
        """Its tokens."""
        return front_for(self.config)

    def make(self, rows: Rows, items: Tensor, held_out: float, seed: int) -> Made:
        """The model."""
        return Made(self.front, self.config, items)


@dataclass(frozen=True)
class ByGate(Reading):
    """Heads of rated objectives on features of a frozen model, weighed by a gate.

    Attributes:
        features: the front on the frozen model.
        names: of the objectives; none takes every rating of the file.
        ratings: another file with the rated items.
        debias: the objective that stands for verbosity, or "length"; None takes nothing out.
        members: of the ensemble.
    """

    features: Front
    names: Sequence[str] = ()
    ratings: str | Path | None = None
    debias: str | None = None
    members: int = 1

    @property
    def front(self) -> Front:
        """The features, and the length where that is what is taken out."""
        return WithLength(self.features) if self.debias == LENGTH else self.features

    def make(self, rows: Rows, items: Tensor, held_out: float, seed: int) -> Made:
        """Fits the heads; the gate is still to be trained."""
        rated = rows if self.ratings is None else read_rows(self.ratings, held_out, None, self.front)
        names = names_of(rated, self.names)
        with torch.no_grad():
            asked = self.front.asked(requests(rows.prompts)).to("cpu")
        sizes = {"features": items.shape[2], "prompt": asked.tables["prompt"].shape[1], "objectives": len(names)}
        config = GatedConfig(**sizes, members=self.members)
        net = config.build(seed)
        found = fit_objectives(net, rated_items(rated, self.front, names), names, self.debias)
        return Made(self.front, config, items, asked, net, found)


def usual(rows: Rows, length: int, size: int, members: int) -> Reading:
    """How a file is read if nothing else is said: bytes of texts, squares of pictures."""
    return ByPixels(size, members) if rows.pictures else ByBytes(length, members)
