r"""Qwen-Image: a transformer on 2 x 2 patches of 16-channel latents, a vision-language model as text encoder.

Its guidance keeps the norm of the conditional prediction: with ``p = p_null + w (p_cond - p_null)``, each token of the
result is ``p |p_cond| / |p|``.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from girsanov.adapters.base import Adapter, required
from girsanov.adapters.latents import encoded, pack, standardised, unpack, unstandardised
from girsanov.adapters.schedule import even_sigmas, linear_mu
from girsanov.adapters.text import Row
from girsanov.types import Cond


def norm_kept(p_cond: Tensor, p_null: Tensor, scale: float) -> Tensor:
    """The guided prediction [B, C, H, W], every token of it as long as the conditional one."""
    cond, guided = pack(p_cond), pack(torch.lerp(p_null, p_cond, scale))
    longer = cond.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
    return unpack(guided * longer, *p_cond.shape[2:])


class QwenImage(Adapter):
    """``QwenImagePipeline``. Conditions: ``text`` [R, L, C] and ``mask`` [R, L], L the longest prompt's length."""

    pipelines: ClassVar[tuple[str, ...]] = ("QwenImagePipeline",)
    targets: ClassVar[tuple[str, ...]] = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )
    longest: ClassVar[tuple[str, int | None]] = ("tokenizer", 512)
    options: ClassVar[tuple[str, ...]] = ("height", "width", "tokens", "strength")
    scale_argument: ClassVar[str] = "true_cfg_scale"
    guide = staticmethod(norm_kept)

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
        p = self.network(
            hidden_states=pack(x).to(self.dtype),
            timestep=t / 1000,
            encoder_hidden_states=given["text"].to(self.dtype),
            encoder_hidden_states_mask=given["mask"],
            img_shapes=[[(1, h // 2, w // 2)]] * len(x),
            return_dict=False,
        )[0]
        return unpack(p, h, w)

    def to_data(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, H, W]."""
        vae = self.pipe.vae
        out: Tensor = vae.decode(standardised(vae, x.unsqueeze(2)), return_dict=False)[0]
        return out[:, :, 0]

    def to_latents(self, pictures: Tensor) -> Tensor:
        """States [B, 16, H / 8, W / 8]: a picture is a video of one frame."""
        return unstandardised(self.pipe.vae, encoded(self.pipe.vae, pictures.unsqueeze(2)))[:, :, 0]

    def embed(self, texts: Sequence[str], negative: bool, device: torch.device) -> list[Row]:
        """``text`` [L, C] of a prompt of L tokens, ``mask`` [L] of ones."""
        text, mask = self.pipe.encode_prompt(list(texts), device, max_sequence_length=self.tokens)
        lengths = [text.shape[1]] * len(text) if mask is None else mask.sum(1).tolist()
        return [
            {"text": row[:n], "mask": torch.ones(n, dtype=torch.int64)} for row, n in zip(text, lengths, strict=True)
        ]

    def shift(self, n: int) -> tuple[np.ndarray | None, float | None]:
        """By the number of tokens."""
        _, h, w = self.shape
        return even_sigmas(n), linear_mu(h * w // 4, self.pipe.scheduler.config)
