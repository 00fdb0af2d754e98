"""Wan 2.1: videos; a transformer on latents of an eighth of the frame and a quarter of their number, UMT5 for texts."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from girsanov.adapters.base import Adapter, PipelineConfig, required, rows
from girsanov.adapters.latents import standardised
from girsanov.adapters.text import Row
from girsanov.errors import GirsanovError
from girsanov.types import Cond

FRAMES, HEIGHT, WIDTH = 81, 480, 832


class Wan(Adapter):
    """``WanPipeline`` with one transformer. Condition: ``text`` [R, tokens, C]."""

    pipelines: ClassVar[tuple[str, ...]] = ("WanPipeline",)
    targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    longest: ClassVar[tuple[str, int | None]] = ("tokenizer", 512)
    options: ClassVar[tuple[str, ...]] = ("height", "width", "frames", "tokens")

    def __init__(self, pipe: Any, config: PipelineConfig | None = None) -> None:
        if pipe.config.boundary_ratio is not None or pipe.config.expand_timesteps:
            raise GirsanovError(
                "this is Wan 2.2, which has two networks or a time for each token: Wan 2.1 is what is known here"
            )
        super().__init__(pipe, config)

    @property
    def shape(self) -> tuple[int, ...]:
        """[16, (F - 1) / 4 + 1, H / 8, W / 8]."""
        spatial, temporal = self.pipe.vae_scale_factor_spatial, self.pipe.vae_scale_factor_temporal
        frames = self.config.frames or FRAMES
        if (frames - 1) % temporal:
            low = 1 + (frames - 1) // temporal * temporal
            raise GirsanovError(f"a video of {frames} frames does not fit: take {low} or {low + temporal}")
        patch = self.pipe.transformer.config.patch_size[1]
        h, _ = self.size(spatial, HEIGHT, patch)
        _, w = self.size(spatial, WIDTH, patch)
        return self.pipe.transformer.config.in_channels, 1 + (frames - 1) // temporal, h, w

    def predict(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """Velocity [B, 16, F', H / 8, W / 8]; t counts to 1000."""
        text = required(cond)["text"].to(self.dtype)
        p: Tensor = self.network(x.to(self.dtype), timestep=t, encoder_hidden_states=text, return_dict=False)[0]
        return p

    def to_data(self, x: Tensor) -> Tensor:
        """Videos [B, 3, F, H, W]."""
        out: Tensor = self.pipe.vae.decode(standardised(self.pipe.vae, x), return_dict=False)[0]
        return out

    def embed(self, texts: Sequence[str], negative: bool, device: torch.device) -> list[Row]:
        """``text`` [tokens, C]."""
        text, _ = self.pipe.encode_prompt(list(texts), None, False, max_sequence_length=self.tokens, device=device)
        return rows(text=text)
