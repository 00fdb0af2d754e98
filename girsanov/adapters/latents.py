"""From latents to what people see: the frozen decoder, in chunks, off the accelerator while it is not used.

A large batch is decoded a few samples at a time. Where a gradient flows through the decoder, each chunk is recomputed
in the backward pass, so that the activations of one chunk are alive, not of all. The way back, from pictures to the
latents of a preference pair, is the mean of the autoencoder's law.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Decoder:
    """A latent model's decoder as a function: latents [B, *D] to data [B, ...] (pictures in about [-1, 1]), float32.

    Args:
        module: the network, frozen here.
        to_data: latents of a chunk to its data.
        chunk: samples at a time.
        offload: move the network back to the host after a call that has no graph.
    """

    def __init__(self, module: nn.Module, to_data: Callable[[Tensor], Tensor], chunk: int = 4, offload: bool = True):
        self.module, self.to_data, self.chunk, self.offload = (
            module.requires_grad_(False).eval(),
            to_data,
            chunk,
            offload,
        )

    def __call__(self, x: Tensor) -> Tensor:
        """The decoded samples."""
        self.module.to(x.device)
        graph = x.requires_grad and torch.is_grad_enabled()
        run = self._recomputed if graph else self.to_data
        data = torch.cat([run(part).float() for part in x.split(self.chunk)])
        if self.offload and not graph and x.device.type != "cpu":
            self.module.to("cpu")
        return data

    def _recomputed(self, x: Tensor) -> Tensor:
        return checkpoint(self.to_data, x, use_reentrant=False)


def scaled(vae: Any, x: Tensor) -> Tensor:
    """``x / scaling + shift`` in the decoder's dtype, with the numbers of its configuration."""
    return (x / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)).to(vae.dtype)


def unscaled(vae: Any, z: Tensor) -> Tensor:
    """``(z - shift) scaling`` in float32: the inverse of ``scaled``."""
    return (z.float() - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor


def standardised(vae: Any, x: Tensor) -> Tensor:
    """``x std + mean`` by channel (the second axis), in the decoder's dtype."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    mean, std = (torch.tensor(v).view(shape).to(x) for v in (vae.config.latents_mean, vae.config.latents_std))
    return (x * std + mean).to(vae.dtype)


def unstandardised(vae: Any, z: Tensor) -> Tensor:
    """``(z - mean) / std`` by channel in float32: the inverse of ``standardised``."""
    shape, config = (1, -1, *[1] * (z.ndim - 2)), vae.config
    mean, std = (torch.tensor(v, device=z.device).view(shape) for v in (config.latents_mean, config.latents_std))
    return (z.float() - mean) / std


def encoded(vae: Any, pictures: Tensor) -> Tensor:
    """What an autoencoder of diffusers makes of pictures: the mean of its law, or its code where it has no law."""
    found = vae.encode(pictures.to(vae.dtype))
    law = getattr(found, "latent_dist", None)
    code: Tensor = found.latent if law is None else law.mode()
    return code


def pack(x: Tensor) -> Tensor:
    """Latents [B, C, H, W] as tokens of 2 x 2 pixels, [B, (H / 2)(W / 2), 4 C] (FLUX.1, Qwen-Image)."""
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, (h // 2) * (w // 2), 4 * c)


def unpack(tokens: Tensor, h: int, w: int) -> Tensor:
    """Inverse of ``pack``: [B, (h / 2)(w / 2), 4 C] to [B, C, h, w]."""
    b, _, c = tokens.shape
    return tokens.reshape(b, h // 2, w // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, h, w)
