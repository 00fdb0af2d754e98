"""Stable Diffusion 1.x and 2.x: a UNet on latents of an eighth of the picture, one text encoder; eps or v.

With a zero-terminal table (``rescale_betas_zero_snr``) the table ends at ``alpha_bar = 2^-24``.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from girsanov.adapters.base import Adapter, required, rows
from girsanov.adapters.text import Row
from girsanov.types import Cond


class StableDiffusion(Adapter):
    """``StableDiffusionPipeline``. Condition: ``text`` [R, 77, C]."""

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline",)
    component: ClassVar[str] = "unet"
    options: ClassVar[tuple[str, ...]] = ("height", "width", "strength")

    @property
    def shape(self) -> tuple[int, ...]:
        """[4, H / 8, W / 8]."""
        unet, scale = self.pipe.unet.config, self.pipe.vae_scale_factor
        return unet.in_channels, *self.size(scale, unet.sample_size * scale)

    def predict(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """eps or v [B, 4, H / 8, W / 8]; t is the table's index."""
        text = required(cond)["text"].to(self.dtype)
        p: Tensor = self.network(x.to(self.dtype), t, encoder_hidden_states=text, return_dict=False)[0]
        return p

    def embed(self, texts: Sequence[str], negative: bool, device: torch.device) -> list[Row]:
        """``text`` [77, C]."""
        return rows(text=self.pipe.encode_prompt(list(texts), device, 1, False)[0])
