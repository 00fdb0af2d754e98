"""FLUX.2 Klein: a transformer on 2 x 2 patches of 32-channel latents, a language model as text encoder.

The latents are standardised by the autoencoder's batch norm. Pictures to edit are further tokens of the sequence, told
apart by their position: they enter as conditions (``image_conditions``), the same for both branches of guidance.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from girsanov.adapters.base import Adapter, required, rows
from girsanov.adapters.latents import encoded
from girsanov.adapters.schedule import even_sigmas
from girsanov.adapters.text import Row
from girsanov.errors import GirsanovError
from girsanov.types import Cond

SMALL, LARGE = (8.73809524e-05, 1.89833333), (0.00016927, 0.45666666)
TURN, FEW, MANY = 4300, 10, 200
MEGAPIXEL = 1024 * 1024


def empirical_mu(tokens: int, n: int) -> float:
    """The logarithm of FLUX.2's shift: linear in the image tokens and in the steps, as fitted by its authors."""
    many = LARGE[0] * tokens + LARGE[1]
    if tokens > TURN:
        return many
    few = SMALL[0] * tokens + SMALL[1]
    slope = (many - few) / (MANY - FEW)
    return many + slope * (n - MANY)


class Flux2Klein(Adapter):
    """``Flux2KleinPipeline``. Conditions: ``text`` [R, tokens, C]; to edit, ``image`` [R, N, 128] and ``image_ids``."""

    pipelines: ClassVar[tuple[str, ...]] = ("Flux2KleinPipeline",)
    targets: ClassVar[tuple[str, ...]] = (
        *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *("to_qkv_mlp_proj", "attn.to_out"),
    )
    longest: ClassVar[tuple[str, int | None]] = ("tokenizer", 512)
    options: ClassVar[tuple[str, ...]] = ("height", "width", "tokens")

    @property
    def shape(self) -> tuple[int, ...]:
        """[128, H / 16, W / 16]."""
        scale = self.pipe.vae_scale_factor
        h, w = self.size(scale, self.pipe.default_sample_size * scale, 2)
        return self.pipe.transformer.config.in_channels, h // 2, w // 2

    def predict(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """Velocity [B, 128, H / 16, W / 16]; t counts to 1000."""
        given, (_, _, h, w) = required(cond), x.shape
        text, tokens = given["text"].to(self.dtype), x.flatten(2).transpose(1, 2).to(self.dtype)
        n, ids = tokens.shape[1], positions(0, h, w, x.device)
        if "image" in given.tables:
            tokens = torch.cat([tokens, given["image"].to(self.dtype)], 1)
            ids = torch.cat([ids, given["image_ids"][0]])
        words = torch.zeros(text.shape[1], 4, dtype=torch.int64, device=x.device)
        words[:, 3] = torch.arange(text.shape[1], device=x.device)
        p = self.network(
            hidden_states=tokens,
            timestep=t / 1000,
            guidance=None,
            encoder_hidden_states=text,
            txt_ids=words,
            img_ids=ids,
            return_dict=False,
        )[0]
        return p[:, :n].transpose(1, 2).reshape(x.shape)

    def to_data(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, H, W]."""
        vae, (mean, std) = self.pipe.vae, self._norm(x)
        out: Tensor = vae.decode(self.pipe._unpatchify_latents(x * std + mean).to(vae.dtype), return_dict=False)[0]
        return out

    def to_latents(self, pictures: Tensor) -> Tensor:
        """States [B, 128, H / 16, W / 16]."""
        z: Tensor = self.pipe._patchify_latents(encoded(self.pipe.vae, pictures)).float()
        mean, std = self._norm(z)
        return (z - mean) / std

    def _norm(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation by channel, [1, 128, 1, 1]."""
        vae = self.pipe.vae
        std = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
        return vae.bn.running_mean.view(1, -1, 1, 1).to(x), std.view(1, -1, 1, 1).to(x)

    def embed(self, texts: Sequence[str], negative: bool, device: torch.device) -> list[Row]:
        """``text`` [tokens, C]."""
        text, _ = self.pipe.encode_prompt(list(texts), device, max_sequence_length=self.tokens)
        return rows(text=text)

    def image_conditions(self, images: Sequence[Any]) -> dict[str, Tensor]:
        """Pictures to edit, one a prompt and all of one size, as conditions.

        Args:
            images: PIL pictures; their sides are cut to multiples of 16 pixels (64 at least), one megapixel at most.

        Raises:
            GirsanovError: pictures of different sizes.
        """
        vae, step, process = self.pipe.vae, 2 * self.pipe.vae_scale_factor, self.pipe.image_processor
        tokens, ids = [], []
        for image in images:
            process.check_image_input(image)
            if image.width * image.height > MEGAPIXEL:
                image = process._resize_to_target_area(image, MEGAPIXEL)
            size = {"height": image.height // step * step, "width": image.width // step * step}
            pixels = process.preprocess(image, **size, resize_mode="crop")
            with torch.no_grad():
                found = self.pipe.prepare_image_latents(
                    [pixels.to(vae.device, vae.dtype)], 1, generator=None, device=vae.device, dtype=vae.dtype
                )
            tokens.append(found[0][0])
            ids.append(found[1][0])
        if len({len(t) for t in tokens}) > 1:
            raise GirsanovError("the pictures to edit have different sizes: scale them to one size first")
        return {"image": torch.stack(tokens), "image_ids": torch.stack(ids)}

    def shift(self, n: int) -> tuple[np.ndarray | None, float | None]:
        """By the number of tokens and of steps."""
        _, h, w = self.shape
        return even_sigmas(n), empirical_mu(h * w, n)


def positions(frame: int, h: int, w: int, device: torch.device) -> Tensor:
    """Positions (frame, row, column, 0) of the tokens of a picture, int64 [h w, 4]."""
    axes = [torch.tensor([frame]), torch.arange(h), torch.arange(w), torch.tensor([0])]
    return torch.cartesian_prod(*axes).to(device)
