"""Stable Diffusion 1.x and 2.x with a ControlNet: the picture that steers is a condition, the ControlNet is frozen."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from girsanov.adapters.base import required
from girsanov.adapters.stable_diffusion import StableDiffusion
from girsanov.types import Cond


class ControlledStableDiffusion(StableDiffusion):
    """``StableDiffusionControlNetPipeline``. Conditions: ``text`` [R, 77, C], ``control`` [R, 3, H, W] in [0, 1]."""

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionControlNetPipeline",)
    helpers: ClassVar[tuple[str, ...]] = ("controlnet",)
    options: ClassVar[tuple[str, ...]] = ("height", "width")

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

    def image_conditions(self, images: Sequence[Any]) -> dict[str, Tensor]:
        """Pictures that steer, one a prompt, scaled to the size that is drawn."""
        scale, (_, h, w) = self.pipe.vae_scale_factor, self.shape
        process = self.pipe.control_image_processor
        made = [process.preprocess(image, height=h * scale, width=w * scale)[0] for image in images]
        return {"control": torch.stack(made).float()}
