r"""A small diffusion transformer (DiT) with adaLN-zero conditioning.

The image [B, C, H, W] is cut into patches of side p, each a token; every block is

.. math::
    h &\leftarrow h + g_1(e) \, \mathrm{Attention}\big((1 + \gamma_1(e)) \mathrm{LN}(h) + \delta_1(e)\big) \\
    h &\leftarrow h + g_2(e) \, \mathrm{MLP}\big((1 + \gamma_2(e)) \mathrm{LN}(h) + \delta_2(e)\big)

with shifts, scales and gates that are linear in the embedding ``e`` and start at zero, so that the network starts as
the identity on tokens and its prediction at zero.

Reference: Peebles & Xie 2023, arXiv:2212.09748, section 3.2 (adaLN-zero).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from girsanov.errors import GirsanovError
from girsanov.nets.embed import Embedding, Even, NetConfig, modulate, zeroed
from girsanov.settings import Count, settings
from girsanov.types import Cond


@settings
class DiTConfig(NetConfig):
    """Sizes of a DiT.

    Attributes:
        patch: side of a patch; divides height and width.
        width: size of a token.
        blocks: number of transformer blocks.
        heads: attention heads; divides the width.
        expand: hidden size of the MLP over the width.
    """

    patch: Count = 2
    width: Even = 96
    blocks: Count = 3
    heads: Count = 4
    expand: Count = 2

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or self.shape[1] % self.patch or self.shape[2] % self.patch:
            raise GirsanovError(
                f"a DiT works on images [C, H, W] whose sides are multiples of its patch of {self.patch}, not on "
                f"{list(self.shape)}"
            )
        if self.width % self.heads:
            raise GirsanovError(f"the width of a DiT must be a multiple of its heads: {self.width} and {self.heads}")

    def _net(self) -> nn.Module:
        return DiT(self)


class Block(nn.Module):
    """One transformer block with adaLN-zero."""

    def __init__(self, width: int, heads: int, expand: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, expand * width), nn.SiLU(), nn.Linear(expand * width, width))
        self.film = zeroed(nn.Linear(width, 6 * width))

    def attention(self, h: Tensor) -> Tensor:
        """Self-attention among the tokens of h [B, N, width]."""
        b, n, width = h.shape
        q, k, v = self.qkv(h).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.merge(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width))

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """h [B, N, width] under the activated embedding e [B, width]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.film(e)[:, None].chunk(6, dim=2)
        h = torch.addcmul(h, gate1, self.attention(modulate(self.norm(h), shift1, scale1)))
        return torch.addcmul(h, gate2, self.mlp(modulate(self.norm(h), shift2, scale2)))


class DiT(nn.Module):
    """Diffusion transformer on images of one size."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        c, height, wide = config.shape
        p, width = config.patch, config.width
        self.embedding = Embedding(width, config.classes, config.vector)
        self.inlet = nn.Linear(c * p * p, width)
        self.place = nn.Parameter(0.02 * torch.randn(height // p * (wide // p), width))
        self.blocks = nn.ModuleList(Block(width, config.heads, config.expand) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.film = zeroed(nn.Linear(width, 2 * width))
        self.outlet = zeroed(nn.Linear(width, c * p * p))

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """x [B, C, H, W] at times t [B] to a prediction of the same shape."""
        e = F.silu(self.embedding(t, cond))
        h = self.inlet(self._patches(x)) + self.place
        for block in self.blocks:
            h = block(h, e)
        shift, scale = self.film(e)[:, None].chunk(2, dim=2)
        return self._image(self.outlet(modulate(self.norm(h), shift, scale)))

    def _patches(self, x: Tensor) -> Tensor:
        """Image [B, C, H, W] to tokens [B, N, C p p]."""
        b, (c, height, wide), p = len(x), self.config.shape, self.config.patch
        cut = x.reshape(b, c, height // p, p, wide // p, p).permute(0, 2, 4, 1, 3, 5)
        return cut.reshape(b, -1, c * p * p)

    def _image(self, tokens: Tensor) -> Tensor:
        """Tokens [B, N, C p p] to the image [B, C, H, W]."""
        b, (c, height, wide), p = len(tokens), self.config.shape, self.config.patch
        cut = tokens.reshape(b, height // p, wide // p, c, p, p).permute(0, 3, 1, 4, 2, 5)
        return cut.reshape(b, c, height, wide)
