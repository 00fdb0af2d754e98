"""Stable Diffusion 3 and 3.5: a transformer on 16-channel latents, two CLIP encoders and T5; a rectified flow."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from girsanov.adapters.base import Adapter, required, rows
from girsanov.adapters.schedule import linear_mu
from girsanov.adapters.text import Row
from girsanov.types import Cond


class StableDiffusion3(Adapter):
    """``StableDiffusion3Pipeline``. Conditions: ``text`` [R, 77 + tokens, C], ``pooled`` [R, P]."""

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusion3Pipeline",)
    targets: ClassVar[tuple[str, ...]] = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )
    longest: ClassVar[tuple[str, int | None]] = ("tokenizer_3", 256)
    options: ClassVar[tuple[str, ...]] = ("height", "width", "tokens", "strength")

    @property
    def shape(self) -> tuple[int, ...]:
        """[16, H / 8, W / 8]."""
        config, scale = self.pipe.transformer.config, self.pipe.vae_scale_factor
        return config.in_channels, *self.size(scale, config.sample_size * scale, config.patch_size)

    def predict(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """Velocity [B, 16, H / 8, W / 8]; t counts to 1000."""
        given = required(cond)
        p: Tensor = self.network(
            hidden_states=x.to(self.dtype),
            timestep=t,
            encoder_hidden_states=given["text"].to(self.dtype),
            pooled_projections=given["pooled"].to(self.dtype),
            return_dict=False,
        )[0]
        return p

    def embed(self, texts: Sequence[str], negative: bool, device: torch.device) -> list[Row]:
        """``text`` [77 + tokens, C], ``pooled`` [P]."""
        text, _, pooled, _ = self.pipe.encode_prompt(
            list(texts), None, None, device, 1, False, max_sequence_length=self.tokens
        )
        return rows(text=text, pooled=pooled)

    def shift(self, n: int) -> tuple[np.ndarray | None, float | None]:
        """SD3's is fixed and in the scheduler; where a pipeline shifts by size, by the number of tokens."""
        _, h, w = self.shape
        patch = self.pipe.transformer.config.patch_size
        return None, linear_mu((h // patch) * (w // patch), self.pipe.scheduler.config, last=1.16)
