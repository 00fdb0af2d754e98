"""Networks of reward models: ``net(x [N, *D], cond) -> scores [N, M]``, M members (1 unless it is an ensemble).

======  ==================================================================  ==============================
scorer  x                                                                   body
======  ==================================================================  ==============================
linear  features [N, F]                                                     none
mlp     features [N, F]                                                     residual MLP
pixels  images [N, C, H, W], the class of each in ``cond["label"]``         residual MLP on pixels
text    token ids [N, L], 0 is padding (``encode_texts``: bytes)            transformer, mean of positions
======  ==================================================================  ==============================

A configuration builds its network from a seed; an ensemble is M of them (``members``), trained on the same data from
different starts. All are smooth, so a reward model of images has useful gradients.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from girsanov.errors import GirsanovError
from girsanov.settings import Count, Natural, settings
from girsanov.types import Cond

SEPARATOR, BYTES = 257, 258


@settings
class ScorerConfig(ABC):
    """Sizes of a network that scores.

    Attributes:
        members: how many networks are trained side by side.
        reads_prompt: whether it reads the prompt's features besides the item's.
    """

    members: Count = 1

    reads_prompt: ClassVar[bool] = False

    @property
    def differentiable(self) -> bool:
        """Whether scores have a gradient in x."""
        return True

    @abstractmethod
    def one(self) -> nn.Module:
        """A network ``(x, cond) -> [N]`` with fresh weights."""

    def build(self, seed: int = 0) -> "Members":
        """The network; every member has its own start."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Members([self.one() for _ in range(self.members)])

    def tensors(self, net: nn.Module) -> Mapping[str, Tensor]:
        """What of a network's state is saved."""
        return net.state_dict()

    def fill(self, net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Puts what was saved into a fresh network, in the dtype it was saved in."""
        net.load_state_dict(tensors, strict=True, assign=True)


class Members(nn.Module):
    """Networks side by side: scores [N, M]."""

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor, cond: Cond | None = None) -> Tensor:
        """Scores of every member, [N, M]."""
        return torch.stack([net(x, cond) for net in self.nets], 1)


class Residual(nn.Module):
    """``h + W_2 silu(W_1 LN(h))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        """[N, width]."""
        return h + self.outer(F.silu(self.inner(self.norm(h))))


class Flat(nn.Module):
    """A residual MLP on the flattened input, with the class added to the first layer."""

    def __init__(self, size: int, classes: int, width: int, blocks: int) -> None:
        super().__init__()
        self.size = size
        self.inner = nn.Linear(size, width)
        self.label = nn.Embedding(classes, width) if classes else None
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.norm, self.outer = nn.LayerNorm(width), nn.Linear(width, 1)

    def forward(self, x: Tensor, cond: Cond | None = None) -> Tensor:
        """Scores [N]."""
        flat = x.flatten(1)
        if flat.shape[1] != self.size:
            raise GirsanovError(f"this reward model reads {self.size} numbers an item, got {list(x.shape[1:])}")
        h = self.inner(flat)
        if self.label is not None:
            if cond is None:
                raise GirsanovError("this reward model reads the class of each item: give conditions with a label")
            h = h + self.label(cond["label"])
        return self.outer(F.silu(self.norm(self.blocks(h))))[:, 0]


class Linear(nn.Module):
    """``w . x + b``."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.outer = nn.Linear(features, 1)

    def forward(self, x: Tensor, cond: Cond | None = None) -> Tensor:
        """Scores [N]."""
        return self.outer(x)[:, 0]


class Attention(nn.Module):
    """A transformer block over positions, padding left out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.outer, self.mlp = nn.Linear(width, 3 * width), nn.Linear(width, width), Residual(width)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """h [N, L, width], mask bool [N, L]."""
        q, k, v = self.qkv(self.norm(h)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return self.mlp(h + self.outer(seen.transpose(1, 2).flatten(2)))


class Text(nn.Module):
    """A small transformer over tokens, read at the mean of its positions."""

    def __init__(self, vocabulary: int, length: int, width: int, blocks: int, heads: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width, padding_idx=0)
        self.place = nn.Parameter(torch.randn(length, width) / math.sqrt(width))
        self.blocks = nn.ModuleList(Attention(width, heads) for _ in range(blocks))
        self.norm, self.outer = nn.LayerNorm(width), nn.Linear(width, 1)

    def forward(self, x: Tensor, cond: Cond | None = None) -> Tensor:
        """Scores [N] of token ids [N, L]."""
        mask = x != 0
        if x.shape[1] > len(self.place) or not bool(mask.any(1).all()):
            raise GirsanovError(f"a text must hold 1 to {len(self.place)} tokens: cut it, or leave empty ones out")
        h = self.token(x) + self.place[: x.shape[1]]
        for block in self.blocks:
            h = block(h, mask)
        mean = (h * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
        return self.outer(self.norm(mean))[:, 0]


@settings
class LinearConfig(ScorerConfig):
    """A linear reward of F features."""

    features: Count

    def one(self) -> nn.Module:
        """The network."""
        return Linear(self.features)


@settings
class FeaturesConfig(ScorerConfig):
    """A residual MLP on F features."""

    features: Count
    width: Count = 64
    blocks: Natural = 1

    def one(self) -> nn.Module:
        """The network."""
        return Flat(self.features, 0, self.width, self.blocks)


@settings
class PixelsConfig(ScorerConfig):
    """A residual MLP on raw pixels; ``classes`` of 0 reads no class."""

    shape: tuple[int, ...]
    classes: Natural = 0
    width: Count = 128
    blocks: Natural = 2

    def one(self) -> nn.Module:
        """The network."""
        return Flat(math.prod(self.shape), self.classes, self.width, self.blocks)


@settings
class TextConfig(ScorerConfig):
    """A small transformer on token ids; bytes by default."""

    vocabulary: Count = BYTES
    length: Count = 256
    width: Count = 64
    blocks: Natural = 2
    heads: Count = 4

    @property
    def differentiable(self) -> bool:
        """Token ids have no gradient."""
        return False

    def one(self) -> nn.Module:
        """The network. Raises GirsanovError if the heads do not divide the width."""
        if self.width % self.heads:
            raise GirsanovError(f"{self.heads} heads do not divide a width of {self.width}")
        return Text(self.vocabulary, self.length, self.width, self.blocks, self.heads)


def encode_texts(prompts: Sequence[str], answers: Sequence[str], length: int) -> Tensor:
    """Bytes of prompt and answer with a separator between, int64 [N, L], L at most ``length``.

    Where both do not fit, the beginning of the prompt is cut, then the end of the answer. Raises GirsanovError with the
    row of an empty answer.
    """
    rows = []
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        if not answer.strip():
            raise GirsanovError(f"the answer of row {row} is empty: leave it out")
        tail = [b + 1 for b in answer.encode()][: length - 1]
        room = length - 1 - len(tail)
        head = [b + 1 for b in prompt.encode()][-room:] if room else []
        rows.append(torch.tensor([*head, SEPARATOR, *tail]))
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)
