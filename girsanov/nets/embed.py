r"""What a network is told beside its state: the time, and a class or a vector, as one embedding [B, width].

.. math:: e = U\,\mathrm{silu}(V \phi(t)) + E_{label} + P\,vector, \qquad
    \phi(t) = [\cos \omega_j t,\; \sin \omega_j t], \quad \omega_j = \omega_{max}^{j / (J - 1)},\; j = 0 .. J - 1

The frequencies run geometrically from 1 to ``omega_max`` radians per unit of time. Classes are numbered from 0; index
``classes`` is the **null class** of classifier-free guidance, and so is a batch without conditions. The null vector is
the zero vector. Zero ``classes`` (or ``vector``) leaves that part out.

References: Vaswani et al. 2017, arXiv:1706.03762, section 3.5 (sinusoids); Ho & Salimans 2022, arXiv:2207.12598 (null
class).
"""

import math
from abc import ABC, abstractmethod
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from girsanov.errors import GirsanovError
from girsanov.settings import Count, Natural, settings
from girsanov.types import Cond

MAX_FREQUENCY = 1000.0

Even = Annotated[int, Field(ge=4, multiple_of=2)]
"""Size of an embedding: half cosines, half sines."""


@settings
class NetConfig(ABC):
    """What every network of this folder is built from.

    Attributes:
        shape: data shape ``*D``.
        classes: number of classes, 0 for none; the label ``classes`` is the null class.
        vector: length of the condition vector, 0 for none.
    """

    shape: Annotated[tuple[Count, ...], Field(min_length=1)]
    classes: Natural = 0
    vector: Natural = 0

    @abstractmethod
    def _net(self) -> nn.Module:
        """The module, initialised from torch's global generator."""

    def build(self, seed: int = 0) -> nn.Module:
        """The network ``net(x [B, *D], t [B], cond) -> [B, *D]``; the same seed gives the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._net()


class FourierTime(nn.Module):
    """Time [B] to cosines and sines [B, width] in its own dtype."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pairs = width // 2

    def forward(self, t: Tensor) -> Tensor:
        """``phi(t)``."""
        power = torch.linspace(0.0, 1.0, self.pairs, device=t.device, dtype=t.dtype)
        angle = t[:, None] * torch.exp(math.log(MAX_FREQUENCY) * power)
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class Embedding(nn.Module):
    """Time and condition to one vector [B, width].

    Args:
        width: size of the embedding, even.
        classes, vector: as in NetConfig.
    """

    def __init__(self, width: int, classes: int = 0, vector: int = 0) -> None:
        super().__init__()
        self.classes, self.vector = classes, vector
        self.time = nn.Sequential(FourierTime(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.project = nn.Linear(vector, width) if vector else None

    def forward(self, t: Tensor, cond: Cond | None) -> Tensor:
        """The embedding of times t [B] under ``cond["label"]`` (int64 [B]) and ``cond["vector"]`` ([B, vector]).

        Raises GirsanovError on a label outside 0 .. classes (host tensors) or a vector of another length.
        """
        e = self.time(t)
        if self.label is not None:
            label = t.new_full((len(t),), self.classes, dtype=torch.int64) if cond is None else cond["label"]
            self._check_label(label)
            e = e + self.label(label)
        if self.project is not None:
            vector = t.new_zeros(len(t), self.vector) if cond is None else cond["vector"].to(t.dtype)
            if vector.shape[1:] != (self.vector,):
                raise GirsanovError(f"the network takes vectors of length {self.vector}, got {list(vector.shape[1:])}")
            e = e + self.project(vector)
        return e

    def _check_label(self, label: Tensor) -> None:
        if label.dtype != torch.int64 or label.ndim != 1:
            raise GirsanovError(f"labels are int64 of shape [B], got {label.dtype} of shape {list(label.shape)}")
        if label.device.type == "cpu" and len(label) and not 0 <= int(label.min()) <= int(label.max()) <= self.classes:
            raise GirsanovError(
                f"labels run from 0 to {self.classes - 1}, and {self.classes} is the null class: got "
                f"{int(label.min())} to {int(label.max())}"
            )


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """FiLM: ``(1 + scale) h + shift``; shift and scale broadcast over h."""
    return torch.addcmul(h + shift, h, scale)


def zeroed(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """The layer with weight and bias 0, so that the block or head it ends starts as nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
