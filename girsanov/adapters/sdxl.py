"""Stable Diffusion XL: a UNet conditioned on two text encoders, a pooled embedding and the picture's size.

The base model; the refiner is refused. An empty negative prompt is zeros where the pipeline says so
(``force_zeros_for_empty_prompt``), as in the pipeline when none is given.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from girsanov.adapters.base import Adapter, PipelineConfig, required, rows
from girsanov.adapters.text import Row
from girsanov.errors import GirsanovError
from girsanov.types import Cond


class StableDiffusionXL(Adapter):
    """``StableDiffusionXLPipeline``. Conditions: ``text`` [R, 77, C], ``pooled`` [R, P]."""

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionXLPipeline",)
    component: ClassVar[str] = "unet"
    options: ClassVar[tuple[str, ...]] = ("height", "width", "strength")

    def __init__(self, pipe: Any, config: PipelineConfig | None = None) -> None:
        if pipe.text_encoder is None or pipe.config.get("requires_aesthetics_score", False):
            raise GirsanovError(
                "this is the refiner of SDXL, which only redraws what the base has drawn: tune the base model "
                "(stabilityai/stable-diffusion-xl-base-1.0), which has both text encoders"
            )
        super().__init__(pipe, config)

    @property
    def shape(self) -> tuple[int, ...]:
        """[4, H / 8, W / 8]."""
        unet, scale = self.pipe.unet.config, self.pipe.vae_scale_factor
        return unet.in_channels, *self.size(scale, unet.sample_size * scale)

    def predict(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """eps or v [B, 4, H / 8, W / 8]; t is the table's index."""
        given, pooled = required(cond), required(cond)["pooled"].to(self.dtype)
        size = tuple(side * self.pipe.vae_scale_factor for side in x.shape[2:])
        ids = torch.tensor([[*size, 0, 0, *size]], dtype=self.dtype, device=x.device).expand(len(x), -1)
        p: Tensor = self.network(
            x.to(self.dtype),
            t,
            encoder_hidden_states=given["text"].to(self.dtype),
            added_cond_kwargs={"text_embeds": pooled, "time_ids": ids},
            return_dict=False,
        )[0]
        return p

    def embed(self, texts: Sequence[str], negative: bool, device: torch.device) -> list[Row]:
        """``text`` [77, C], ``pooled`` [P]."""
        text, _, pooled, _ = self.pipe.encode_prompt(list(texts), None, device, 1, False)
        if negative and self.pipe.config.force_zeros_for_empty_prompt:
            said = torch.tensor([bool(t) for t in texts], device=text.device)
            text, pooled = text * said[:, None, None], pooled * said[:, None]
        return rows(text=text, pooled=pooled)
