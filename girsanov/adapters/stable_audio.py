"""Stable Audio: sound; a transformer on latents in time, T5 for texts, the length as a further condition.

EDM's preconditioning with data of std 1 and ``v`` is the cosine process (``schedule.py``). An empty negative prompt is
zeros, as in the pipeline when none is given.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from girsanov.adapters.base import Adapter, required, rows
from girsanov.adapters.text import Row
from girsanov.errors import GirsanovError
from girsanov.types import Cond


class StableAudio(Adapter):
    """``StableAudioPipeline``. Conditions: ``text`` [R, tokens + 2, C], ``length`` [R, 1, 2 C]."""

    pipelines: ClassVar[tuple[str, ...]] = ("StableAudioPipeline",)
    targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    options: ClassVar[tuple[str, ...]] = ("seconds",)

    @property
    def shape(self) -> tuple[int, ...]:
        """[64, L]; a shorter sound is the beginning of one of full length."""
        config = self.pipe.transformer.config
        return config.in_channels, config.sample_size

    @property
    def seconds(self) -> float:
        """How long the sound is."""
        vae = self.pipe.vae
        longest = self.shape[1] * vae.hop_length / vae.config.sampling_rate
        if self.config.seconds is not None and self.config.seconds > longest:
            raise GirsanovError(f"seconds = {self.config.seconds:g}: this network makes at most {longest:.3g}")
        return self.config.seconds or longest

    def predict(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """v [B, 64, L]; t is the cosine process's own."""
        from diffusers.models.embeddings import get_1d_rotary_pos_embed

        given, width = required(cond), self.pipe.rotary_embed_dim
        turns = get_1d_rotary_pos_embed(width, x.shape[2] + 1, use_real=True, repeat_interleave_real=False)
        p: Tensor = self.network(
            x.to(self.dtype),
            t.to(self.dtype),
            encoder_hidden_states=given["text"].to(self.dtype),
            global_hidden_states=given["length"].to(self.dtype),
            rotary_embedding=tuple(v.to(x.device) for v in turns),
            return_dict=False,
        )[0]
        return p

    def to_data(self, x: Tensor) -> Tensor:
        """Sound [B, C, samples]."""
        vae = self.pipe.vae
        out: Tensor = vae.decode(x.to(vae.dtype)).sample
        return out[:, :, : int(self.seconds * vae.config.sampling_rate)]

    def embed(self, texts: Sequence[str], negative: bool, device: torch.device) -> list[Row]:
        """``text`` [tokens + 2, C], ``length`` [1, 2 C]."""
        words = self.pipe.encode_prompt(list(texts), device, False)
        start, end = self.pipe.encode_duration(0.0, self.seconds, device, False, len(texts))
        text = torch.cat([words, start, end], 1)
        if negative:
            text = text * torch.tensor([bool(t) for t in texts], device=text.device)[:, None, None]
        return rows(text=text, length=torch.cat([start, end], 2))
