"""Sana: a linear-attention transformer on latents of a thirty-second of the picture, a language model for texts.

Positive prompts follow the pipeline's own instruction to its language model, negative ones do not.
"""

import inspect
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from girsanov.adapters.base import Adapter, required, rows
from girsanov.adapters.text import Row
from girsanov.types import Cond


class Sana(Adapter):
    """``SanaPipeline``. Conditions: ``text`` [R, tokens, C] and ``mask`` [R, tokens]."""

    pipelines: ClassVar[tuple[str, ...]] = ("SanaPipeline",)
    targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    longest: ClassVar[tuple[str, int | None]] = ("tokenizer", 300)
    options: ClassVar[tuple[str, ...]] = ("height", "width", "tokens")

    @property
    def shape(self) -> tuple[int, ...]:
        """[32, H / 32, W / 32]."""
        config, scale = self.pipe.transformer.config, self.pipe.vae_scale_factor
        return config.in_channels, *self.size(scale, config.sample_size * scale)

    def predict(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """Velocity [B, 32, H / 32, W / 32]; t counts to 1000."""
        given = required(cond)
        p = self.network(
            x.to(self.dtype),
            encoder_hidden_states=given["text"].to(self.dtype),
            encoder_attention_mask=given["mask"],
            timestep=t * self.pipe.transformer.config.timestep_scale,
            return_dict=False,
        )[0]
        return p[:, : x.shape[1]]

    def embed(self, texts: Sequence[str], negative: bool, device: torch.device) -> list[Row]:
        """``text`` [tokens, C], ``mask`` [tokens]."""
        usual = inspect.signature(type(self.pipe).__call__).parameters["complex_human_instruction"].default
        text, mask, _, _ = self.pipe.encode_prompt(
            list(texts),
            False,
            device=device,
            max_sequence_length=self.tokens,
            complex_human_instruction=None if negative else usual,
        )
        return rows(text=text, mask=mask)
