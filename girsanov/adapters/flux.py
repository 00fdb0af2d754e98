"""FLUX.1: a transformer on 2 x 2 patches of 16-channel latents, CLIP's pooled embedding and T5.

FLUX.1-dev was distilled to take the scale of guidance as an input (``pipeline.guidance_input``); guidance in the
sense of two branches is another thing, off by default, and costs a second pass.
"""

import inspect
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from girsanov.adapters.base import Adapter, required, rows
from girsanov.adapters.latents import pack, unpack
from girsanov.adapters.schedule import even_sigmas, linear_mu
from girsanov.adapters.text import Row
from girsanov.types import Cond


class Flux(Adapter):
    """``FluxPipeline`` (dev and schnell). Conditions: ``text`` [R, tokens, C], ``pooled`` [R, P]."""

    pipelines: ClassVar[tuple[str, ...]] = ("FluxPipeline",)
    targets: ClassVar[tuple[str, ...]] = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )
    longest: ClassVar[tuple[str, int | None]] = ("tokenizer_2", 512)
    options: ClassVar[tuple[str, ...]] = ("height", "width", "tokens", "guidance_input", "strength")
    scale_argument: ClassVar[str] = "true_cfg_scale"

    @property
    def shape(self) -> tuple[int, ...]:
        """[16, H / 8, W / 8]."""
        scale = self.pipe.vae_scale_factor
        return self.pipe.transformer.config.in_channels // 4, *self.size(
            scale, self.pipe.default_sample_size * scale, 2
        )

    def predict(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """Velocity [B, 16, H / 8, W / 8]; t counts to 1000."""
        given, (h, w) = required(cond), x.shape[2:]
        text = given["text"].to(self.dtype)
        p = self.network(
            hidden_states=pack(x).to(self.dtype),
            timestep=t / 1000,
            guidance=self._told(x),
            pooled_projections=given["pooled"].to(self.dtype),
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=x.device, dtype=self.dtype),
            img_ids=self.pipe._prepare_latent_image_ids(len(x), h // 2, w // 2, x.device, self.dtype),
            return_dict=False,
        )[0]
        return unpack(p, h, w)

    def _told(self, x: Tensor) -> Tensor | None:
        """The scale of guidance as an input, [B], for networks that take it."""
        if not self.pipe.transformer.config.guidance_embeds:
            return None
        usual = inspect.signature(type(self.pipe).__call__).parameters["guidance_scale"].default
        scale = usual if self.config.guidance_input is None else self.config.guidance_input
        return torch.full((len(x),), float(scale), device=x.device)

    def embed(self, texts: Sequence[str], negative: bool, device: torch.device) -> list[Row]:
        """``text`` [tokens, C], ``pooled`` [P]."""
        found = self.pipe.encode_prompt(list(texts), None, device, max_sequence_length=self.tokens)
        return rows(text=found[0], pooled=found[1])

    def shift(self, n: int) -> tuple[np.ndarray | None, float | None]:
        """By the number of tokens."""
        _, h, w = self.shape
        return even_sigmas(n), linear_mu(h * w // 4, self.pipe.scheduler.config)
