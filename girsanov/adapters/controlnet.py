"""Stable Diffusion 1.x and 2.x with a ControlNet: the picture that steers is a condition, the ControlNet is frozen."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from girsanov.adapters.base import Adapter, required, rows
from girsanov.adapters.latents import scaled
from girsanov.adapters.text import Row
from girsanov.types import Cond


class ControlledStableDiffusion(Adapter):
    """``StableDiffusionControlNetPipeline``. Conditions: ``text`` [R, 77, C], ``control`` [R, 3, H, W] in [0, 1]."""

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionControlNetPipeline",)
    component: ClassVar[str] = "unet"
    helpers: ClassVar[tuple[str, ...]] = ("controlnet",)

    @property
    def shape(self) -> tuple[int, ...]:
        """[4, H / 8, W / 8]."""
        unet, scale = self.pipe.unet.config, self.pipe.vae_scale_factor
        return unet.in_channels, *self.size(scale, unet.sample_size * scale)

    def predict(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """eps or v [B, 4, H / 8, W / 8]; t is the table's index."""
        given, x = required(cond), x.to(self.dtype)
        text, control = given["text"].to(self.dtype), given["control"].to(self.dtype)
        down, middle = self.pipe.controlnet(
            x, t, encoder_hidden_states=text, controlnet_cond=control, return_dict=False
        )
        p: Tensor = self.network(
            x,
            t,
            encoder_hidden_states=text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]
        return p

    def to_data(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, H, W]."""
        out: Tensor = self.pipe.vae.decode(scaled(self.pipe.vae, x), return_dict=False)[0]
        return out

    def embed(self, texts: Sequence[str], negative: bool, device: torch.device) -> list[Row]:
        """``text`` [77, C]."""
        return rows(text=self.pipe.encode_prompt(list(texts), device, 1, False)[0])

    def image_conditions(self, images: Sequence[Any]) -> dict[str, Tensor]:
        """Pictures that steer, one a prompt, scaled to the size that is drawn."""
        scale, (_, h, w) = self.pipe.vae_scale_factor, self.shape
        process = self.pipe.control_image_processor
        made = [process.preprocess(image, height=h * scale, width=w * scale)[0] for image in images]
        return {"control": torch.stack(made).float()}
