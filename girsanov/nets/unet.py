r"""A small convolutional UNet with FiLM conditioning and self-attention at its coarsest level.

Each level halves the side; a residual block is

.. math::
    h \leftarrow S h + C_2\, \mathrm{silu}\big((1 + \gamma(e))\, \mathrm{GN}(C_1\, \mathrm{silu}(\mathrm{GN}(h)))
    + \delta(e)\big)

with convolutions ``C``, group norms ``GN`` and a 1 x 1 convolution ``S`` where the number of channels changes. Blocks
on the way up read the state of the same side on the way down.

References: Ronneberger et al. 2015, arXiv:1505.04597; Ho et al. 2020, arXiv:2006.11239; Nichol & Dhariwal 2021,
arXiv:2102.09672 (scale and shift inside the block).
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from girsanov.errors import GirsanovError
from girsanov.nets.embed import Embedding, Even, NetConfig, modulate, zeroed
from girsanov.settings import Count, settings
from girsanov.types import Cond


@settings
class UNetConfig(NetConfig):
    """Sizes of a UNet.

    Attributes:
        channels: channels of each level, finest first.
        blocks: residual blocks a level, on the way down and on the way up.
        groups: groups of every group norm; divides all channels.
        heads: attention heads at the coarsest level; divides its channels.
        embed: size of the embedding of time and condition, even.
    """

    channels: Annotated[tuple[Count, ...], Field(min_length=1)] = (32, 64)
    blocks: Count = 1
    groups: Count = 8
    heads: Count = 4
    embed: Even = 128

    def __post_init__(self) -> None:
        fold = 2 ** (len(self.channels) - 1)
        if any(n % self.groups for n in self.channels) or self.channels[-1] % self.heads:
            raise GirsanovError(
                f"the channels of a UNet must be multiples of its {self.groups} groups, and the last of its "
                f"{self.heads} heads: {list(self.channels)}"
            )
        if len(self.shape) != 3 or self.shape[1] % fold or self.shape[2] % fold:
            raise GirsanovError(
                f"a UNet of {len(self.channels)} levels works on images [C, H, W] with sides divisible by {fold}, not "
                f"on {list(self.shape)}"
            )

    def _net(self) -> nn.Module:
        return UNet(self)


class Block(nn.Module):
    """One residual block of two convolutions."""

    def __init__(self, c_in: int, c_out: int, groups: int, embed: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in)
        self.norm2 = nn.GroupNorm(groups, c_out)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.conv2 = zeroed(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.film = nn.Linear(embed, 2 * c_out)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """h [B, c_in, H, W] to [B, c_out, H, W] under the activated embedding e [B, embed]."""
        shift, scale = self.film(e)[:, :, None, None].chunk(2, dim=1)
        inner = self.conv1(F.silu(self.norm1(h)))
        return self.skip(h) + self.conv2(F.silu(modulate(self.norm2(inner), shift, scale)))


class Attention(nn.Module):
    """Residual self-attention among the pixels."""

    def __init__(self, channels: int, groups: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.merge = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        """h [B, C, H, W] to the same shape."""
        b, c, height, wide = h.shape
        q, k, v = self.qkv(self.norm(h)).view(b, 3, self.heads, c // self.heads, -1).transpose(3, 4).unbind(1)
        return h + self.merge(F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(b, c, height, wide))


class UNet(nn.Module):
    """Convolutional UNet on images."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        chan, g, embed = config.channels, config.groups, config.embed
        self.embedding = Embedding(embed, config.classes, config.vector)
        self.inlet = nn.Conv2d(config.shape[0], chan[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()  # ``blocks`` a level, finest level first
        self.shrink, self.grow = nn.ModuleList(), nn.ModuleList()
        for i, c in enumerate(chan):
            above = chan[max(i - 1, 0)]
            self.down.extend(Block(c if j else above, c, g, embed) for j in range(config.blocks))
            self.up.extend(Block(2 * c, c, g, embed) for _ in range(config.blocks))
            if i + 1 < len(chan):
                self.shrink.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
                self.grow.append(nn.Conv2d(chan[i + 1], c, 3, padding=1))
        self.middle = nn.ModuleList(Block(chan[-1], chan[-1], g, embed) for _ in range(2))
        self.attention = Attention(chan[-1], g, config.heads)
        self.norm = nn.GroupNorm(g, chan[0])
        self.outlet = zeroed(nn.Conv2d(chan[0], config.shape[0], 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """x [B, C, H, W] at times t [B] to a prediction of the same shape."""
        e = F.silu(self.embedding(t, cond))
        h = self.inlet(x)
        kept: list[Tensor] = []
        n = self.config.blocks
        for i in range(len(self.config.channels)):
            h = self.shrink[i - 1](h) if i else h
            for block in self.down[i * n : (i + 1) * n]:
                h = block(h, e)
                kept.append(h)
        h = self.middle[1](self.attention(self.middle[0](h, e)), e)
        for i in reversed(range(len(self.config.channels))):
            for block in self.up[i * n : (i + 1) * n]:
                h = block(torch.cat([h, kept.pop()], dim=1), e)
            h = self.grow[i - 1](F.interpolate(h, scale_factor=2.0, mode="nearest")) if i else h
        return self.outlet(F.silu(self.norm(h)))
