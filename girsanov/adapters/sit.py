r"""SiT: a class-conditional transformer on latents, and the loader of its published checkpoints.

The network is DiT's, under the parameter names of the published files: blocks of attention and feed-forward whose
normalised inputs are shifted, scaled and gated by time and class. SiT has data at time 1 and predicts ``data - noise``
on the linear path; here data is at 0, so the network is asked at ``1 - t`` and its answer is negated. A checkpoint
trained with a learned variance has twice the channels, of which the first half is read.

References: Ma et al. 2024, arXiv:2401.08740; Peebles & Xie 2023, arXiv:2212.09748 (the network).
"""

import argparse
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from girsanov.adapters.base import Adapter, PipelineConfig, required
from girsanov.adapters.latents import encoded
from girsanov.adapters.load import diffusers
from girsanov.adapters.schedule import even_sigmas
from girsanov.adapters.text import Row
from girsanov.building import ran_out
from girsanov.errors import GirsanovError
from girsanov.types import Cond

HEADS = {1152: 16, 1024: 16, 768: 12, 384: 6}
"""Width of the published networks (XL, L, B, S) -> attention heads, which a file of weights does not say."""
FREQUENCIES, LATENT_SCALE = 256, 0.18215


class SiTBlock(nn.Module):
    """Attention and feed-forward, each ``x + gate f(shift + (1 + scale) norm(x))``."""

    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        inner = int(width * ratio)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens [B, N, width] under a modulation c [B, width]."""
        a, b, gate, a2, b2, gate2 = self.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=-1)
        q, k, v = self.attn["qkv"](modulated(x, a, b)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + gate * self.attn["proj"](scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        inner = nn.functional.gelu(self.mlp["fc1"](modulated(x, a2, b2)), approximate="tanh")
        return x + gate2 * self.mlp["fc2"](inner)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``shift + (1 + scale) norm(x)``; the norm has no parameters."""
    return torch.addcmul(shift, 1 + scale, nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6))


class SiTNetwork(nn.Module):
    """SiT of any size: ``net(x [B, C, H, W], t [B], label [B])``, data at t = 1, velocity ``data - noise``."""

    def __init__(
        self,
        *,
        size: int,
        patch: int,
        channels: int,
        out_channels: int,
        width: int,
        depth: int,
        heads: int,
        classes: int,
        ratio: float = 4.0,
        frequencies: int = FREQUENCIES,
    ) -> None:
        super().__init__()
        self.channels, self.out_channels, self.patch, self.frequencies = channels, out_channels, patch, frequencies
        self.gradient_checkpointing = False
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, patch)})
        self.t_embedder = nn.ModuleDict(
            {"mlp": nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))}
        )
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(classes + 1, width)})
        self.pos_embed = nn.Parameter(torch.zeros(1, (size // patch) ** 2, width), requires_grad=False)
        self.blocks = nn.ModuleList(SiTBlock(width, heads, ratio) for _ in range(depth))
        modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        last = nn.Linear(width, patch * patch * out_channels)
        self.final_layer = nn.ModuleDict({"linear": last, "adaLN_modulation": modulation})

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the blocks in the backward pass."""
        self.gradient_checkpointing = True

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Velocity [B, C, H, W] at SiT's own time t [B]."""
        b, _, h, w = x.shape
        time = self.t_embedder["mlp"](frequencies(t.float(), self.frequencies).to(x.dtype))
        c = time + self.y_embedder["embedding_table"](label)
        tokens = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            again = self.gradient_checkpointing and torch.is_grad_enabled()
            tokens = checkpoint(block, tokens, c, use_reentrant=False) if again else block(tokens, c)
        shift, scale = self.final_layer["adaLN_modulation"](c).unsqueeze(1).chunk(2, dim=-1)
        out = self.final_layer["linear"](modulated(tokens, shift, scale))
        rows, columns = h // self.patch, w // self.patch
        out = out.reshape(b, rows, columns, self.patch, self.patch, self.out_channels)
        return out.permute(0, 5, 1, 3, 2, 4).reshape(b, self.out_channels, h, w)[:, : self.channels]


def frequencies(t: Tensor, n: int, longest: float = 10000.0) -> Tensor:
    """Cosines, then sines, of times t [B]: [B, n]."""
    rate = torch.exp(-math.log(longest) * torch.arange(n // 2, device=t.device, dtype=t.dtype) / (n // 2))
    angle = t[:, None] * rate
    return torch.cat([angle.cos(), angle.sin()], 1)


@dataclass(frozen=True)
class SiTPipeline:
    """What stands where a pipeline of diffusers would: the network, its autoencoder, a scheduler."""

    transformer: SiTNetwork
    vae: Any
    scheduler: Any

    @property
    def components(self) -> dict[str, nn.Module]:
        """The networks by name."""
        return {"transformer": self.transformer, "vae": self.vae}

    def save_pretrained(self, folder: str) -> None:
        """``network.pt`` in the layout of the published checkpoints, and the autoencoder in ``vae``."""
        torch.save(self.transformer.state_dict(), Path(folder) / "network.pt")
        self.vae.save_pretrained(str(Path(folder) / "vae"))


class SiT(Adapter):
    """A SiT network with an autoencoder. Condition: ``label`` [R]; the null class is ``classes``."""

    targets: ClassVar[tuple[str, ...]] = ("attn.qkv", "attn.proj")
    options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, network: SiTNetwork, vae: Any, config: PipelineConfig | None = None) -> None:
        self.classes = len(network.state_dict()["y_embedder.embedding_table.weight"]) - 1
        super().__init__(SiTPipeline(network, vae, diffusers().FlowMatchEulerDiscreteScheduler()), config)
        network.pos_embed.requires_grad_(False)

    @property
    def shape(self) -> tuple[int, ...]:
        """[4, H / 8, W / 8], the size that the positions were made for."""
        side = math.isqrt(self.network.pos_embed.shape[1]) * self.network.patch
        return self.network.channels, side, side

    def predict(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """Velocity ``noise - data``, [B, 4, H / 8, W / 8]; t counts to 1000."""
        out: Tensor = self.network(x.to(self.dtype), 1 - t / 1000, required(cond)["label"])
        return -out

    def to_data(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, H, W]."""
        vae = self.pipe.vae
        out: Tensor = vae.decode((x / LATENT_SCALE).to(vae.dtype), return_dict=False)[0]
        return out

    def to_latents(self, pictures: Tensor) -> Tensor:
        """States [B, 4, H / 8, W / 8]."""
        return encoded(self.pipe.vae, pictures).float() * LATENT_SCALE

    def embed(self, texts: Sequence[str], negative: bool, device: torch.device) -> list[Row]:
        """A class has no embedding of its own: the network holds them."""
        raise GirsanovError("SiT draws classes, not texts: use ClassPrompts")

    def shift(self, n: int) -> tuple[np.ndarray | None, float | None]:
        """Equal steps."""
        return even_sigmas(n), None


def load_sit(name: str, config: PipelineConfig | None = None, *, dtype: torch.dtype = torch.float32) -> SiT:
    """A published checkpoint (or one of SiT's own training) and the autoencoder that it works with.

    Args:
        name: ``SiT-XL-2-256x256.pt,VAE``: the file, and folder or hub name of the autoencoder.
        config: of what is drawn.
        dtype: of the weights.

    Raises:
        GirsanovError: no such file, no SiT in it, no autoencoder.
    """
    file, comma, vae = name.partition(",")
    if not comma or not vae:
        raise GirsanovError(
            f"{name} holds a network without an autoencoder: write {file},FOLDER with the folder or the name of one "
            "(published SiT checkpoints use stabilityai/sd-vae-ft-ema)"
        )
    return SiT(read_sit(Path(file).expanduser(), dtype), read_vae(vae, dtype), config)


def read_vae(name: str, dtype: torch.dtype) -> Any:
    """An autoencoder from a folder or the hub."""
    package = diffusers()
    try:
        return package.AutoencoderKL.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError) as error:
        raise GirsanovError(
            f"{name} is no autoencoder of diffusers: give a folder with its config.json, or its name on the hub"
        ) from error


def read_sit(path: Path, dtype: torch.dtype = torch.float32) -> SiTNetwork:
    """The network of a file of weights; its sizes are read off their shapes.

    The file is mapped and its weights are put in place one by one: no network is drawn at random first, and memory
    holds the weights once, in the dtype that is asked for.
    """
    if not path.is_file():
        raise GirsanovError(f"there is no file {path}: give the path of a SiT checkpoint (.pt)")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # SiT's training files keep their arguments
            mapped = zipfile.is_zipfile(path)  # files of torch before 1.6 cannot be
            weights: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        weights = weights.get("ema", weights.get("model", weights))
        with torch.device("meta"):
            network = SiTNetwork(**sizes(weights))
        network.load_state_dict({k: w.to(dtype, copy=True) for k, w in weights.items()}, assign=True)
    except GirsanovError:
        raise
    except Exception as error:
        if ran_out(error):
            raise
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise GirsanovError(f"{path} holds no SiT network ({what}): give a checkpoint of SiT") from error
    return network


def sizes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What ``SiTNetwork`` is built with, from the shapes of its weights."""
    width, channels, patch, _ = weights["x_embedder.proj.weight"].shape
    if width not in HEADS and width % 16:
        raise GirsanovError(f"a SiT of width {width} is none that was published: build SiTNetwork with its heads")
    return {
        "size": math.isqrt(weights["pos_embed"].shape[1]) * patch,
        "patch": patch,
        "channels": channels,
        "out_channels": weights["final_layer.linear.weight"].shape[0] // patch**2,
        "width": width,
        "depth": 1 + max(int(k.split(".")[1]) for k in weights if k.startswith("blocks.")),
        "heads": HEADS.get(width, width // 16),
        "classes": weights["y_embedder.embedding_table.weight"].shape[0] - 1,
        "ratio": weights["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "frequencies": weights["t_embedder.mlp.0.weight"].shape[1],
    }
