"""A pretrained pipeline read as a model: what all families share.

A family says how its network is called (``predict``), how texts are embedded (``embed``), what its latents look like
(``shape``) and, where it is not the usual way, how they are decoded (``to_data``) and encoded (``to_latents``). The
rest is here: one trained component inside a module that takes ``(x, t, cond)``, everything else frozen and on the host;
process, kind of prediction, clock, times and sampler from the scheduler (``schedule.py``); the decoder in chunks
(``latents.py``); embeddings and latents with a cache (``text.py``, ``pictures.py``).

The state x is one tensor [B, C, H, W] (video [B, C, F, H, W], audio [B, C, L]) in float32, also where the pipeline
packs its latents into tokens: packing happens around the network.
"""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from girsanov.adapters.latents import Decoder, encoded, scaled, unscaled
from girsanov.adapters.schedule import grid_of, noising_of, sampler_of
from girsanov.adapters.text import Row
from girsanov.errors import GirsanovError
from girsanov.grids import Grid, PipelineTimes
from girsanov.models import Model, extrapolated
from girsanov.samplers import Sampler
from girsanov.settings import Count, NonNegative, Positive, Share, settings
from girsanov.starts import last_steps
from girsanov.types import Cond


@settings
class PipelineConfig:
    """What a pipeline is asked for; None is the pipeline's own default.

    Attributes:
        height, width: of pictures and videos, in pixels.
        frames: of videos.
        seconds: of audio.
        guidance_input: the guidance that a distilled network takes as an input (FLUX.1-dev).
        tokens: how many tokens of a prompt the longest text encoder reads.
        strength: to begin from pictures: the share of the steps that redraw them, 1 is all.
        chunk: samples that are decoded at a time.
        checkpointing: recompute the network's blocks in the backward pass instead of storing them.
    """

    height: Count | None = None
    width: Count | None = None
    frames: Count | None = None
    seconds: Positive | None = None
    guidance_input: NonNegative | None = None
    tokens: Count | None = None
    strength: Share | None = None
    chunk: Count = 4
    checkpointing: bool = False


EVERYWHERE = ("chunk", "checkpointing")


class Denoiser(nn.Module):
    """The trained network of a pipeline as ``net(x [B, *D], t [B], cond)``, in the network's dtype; float32 outside."""

    def __init__(self, network: nn.Module, predict: Callable[[Tensor, Tensor, Cond | None], Tensor]) -> None:
        super().__init__()
        self.network, self.predict = network, predict

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """The raw prediction [B, *D] in the dtype of x."""
        return self.predict(x, t, cond).to(x.dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Denoiser":
        """With a network of its own; text encoders, autoencoder and settings stay those of the one pipeline."""
        network = copy.deepcopy(self.network, memo)
        owner = copy.copy(self.predict.__self__)  # type: ignore[attr-defined]
        owner.network = network
        owner.net = Denoiser(network, owner.predict)
        return owner.net


class Adapter(ABC):
    """A diffusers pipeline and what it is asked for.

    Attributes:
        pipelines: names of the pipeline classes that the family reads.
        component: the attribute of the pipeline that is trained.
        targets: ends of the names of the layers that get low-rank adapters.
        options: the settings of ``PipelineConfig`` that mean something here.
        classes: number of classes of a class-conditional model, None for texts.
        scale_argument: the pipeline's argument for the scale of classifier-free guidance.
        helpers: frozen components that run with the network at every step.
        longest: the tokeniser that reads most of a prompt, and how many tokens; None asks the tokeniser.
    """

    pipelines: ClassVar[tuple[str, ...]]
    component: ClassVar[str] = "transformer"
    targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    options: ClassVar[tuple[str, ...]] = ("height", "width")
    classes: int | None = None
    scale_argument: ClassVar[str] = "guidance_scale"
    longest: ClassVar[tuple[str, int | None]] = ("tokenizer", None)
    helpers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, pipe: Any, config: PipelineConfig | None = None) -> None:
        self.pipe, self.config = pipe, config or PipelineConfig()
        for name, value in vars(self.config).items():
            if value is not None and name not in (*self.options, *EVERYWHERE) and not name.startswith("_"):
                taken = f"it takes {', '.join(self.options)}" if self.options else "leave it out"
                raise GirsanovError(f"pipeline.{name} means nothing to {type(pipe).__name__}: {taken}")
        for module in pipe.components.values():
            if isinstance(module, nn.Module):
                module.requires_grad_(False).eval()
        if getattr(getattr(pipe, "vae", None), "config", {}).get("force_upcast", False):
            pipe.vae.float()
        self.network: Any = getattr(pipe, self.component).requires_grad_(True)
        if getattr(self.network, "encoder_hid_proj", None) is not None and not known_projection(self.network):
            raise GirsanovError(
                f"an IP-adapter is loaded into this {type(pipe).__name__}, and its pictures would reach no network "
                "here: unload it with pipe.unload_ip_adapter()"
            )
        self.dtype: torch.dtype = next(self.network.parameters()).dtype
        self.net = Denoiser(self.network, self.predict)
        if self.config.checkpointing:
            self.network.enable_gradient_checkpointing()

    # ---- what a family says

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape ``*D`` of the state."""

    @abstractmethod
    def predict(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """The network's raw prediction [B, *D] at states x, clock readings t [B] and conditions."""

    def to_data(self, x: Tensor) -> Tensor:
        """States [B, *D] to data: pictures [B, 3, H, W] or videos [B, 3, F, H, W] in about [-1, 1], audio [B, C, L].

        Here, what most picture pipelines do: the autoencoder's decoder on latents with its scale and shift taken off.
        """
        out: Tensor = self.pipe.vae.decode(scaled(self.pipe.vae, x), return_dict=False)[0]
        return out

    def to_latents(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] to states [B, *D] in float32, the inverse of ``to_data``.

        Raises GirsanovError for a family that decodes in a way of its own and does not say how to encode.
        """
        if type(self).to_data is not Adapter.to_data:
            raise GirsanovError(
                f"{type(self).__name__} does not say how pictures become its latents: give it a to_latents, the "
                "inverse of its to_data"
            )
        return unscaled(self.pipe.vae, encoded(self.pipe.vae, pictures))

    @abstractmethod
    def embed(self, texts: Sequence[str], negative: bool, device: torch.device) -> list[Row]:
        """The conditions of each text, as a positive prompt or as the negative one of guidance."""

    def shift(self, n: int) -> tuple[np.ndarray | None, float | None]:
        """``(sigmas, mu)`` that the pipeline hands its scheduler for n steps; nothing by default."""
        return None, None

    guide: Callable[[Tensor, Tensor, float], Tensor] = staticmethod(extrapolated)
    """How the pipeline's guidance combines two predictions."""

    # ---- what follows

    def grid(self, n: int) -> Grid:
        """The n steps that the pipeline's scheduler takes for this size; with a strength, the last of them."""
        whole = grid_of(self.pipe.scheduler, n, *self.shift(n))
        return whole if self.config.strength is None else last_steps(whole, self.config.strength)

    def sampler(self) -> Sampler:
        """The sampler that takes the steps of the pipeline's scheduler, or the nearest one."""
        return sampler_of(self.pipe.scheduler)

    def size(self, scale: int, default: int, multiple: int = 1) -> tuple[int, int]:
        """Height and width of the latents for a picture scale that many times their size.

        Raises GirsanovError if the picture does not divide into ``multiple`` latents.
        """
        found = []
        for name in ("height", "width"):
            pixels = getattr(self.config, name) or default
            if pixels % (scale * multiple):
                low = max(1, pixels // (scale * multiple)) * scale * multiple
                raise GirsanovError(
                    f"a {name} of {pixels} pixels does not fit {type(self.pipe).__name__}: take {low} or "
                    f"{low + scale * multiple}, a multiple of {scale * multiple}"
                )
            found.append(pixels // scale)
        return found[0], found[1]

    def encoders(self) -> Mapping[str, Any]:
        """Text encoders and tokenisers of the pipeline, by name."""
        kinds = ("text_encoder", "tokenizer", "projection_model")
        return {k: v for k, v in self.pipe.components.items() if v is not None and k.startswith(kinds)}

    def settings(self) -> Mapping[str, Any]:
        """What embeddings depend on besides the encoders."""
        return {"family": type(self).__name__, "tokens": self.config.tokens, "seconds": self.config.seconds}

    def to(self, device: torch.device | str) -> None:
        """Moves what runs at every step to a device; text encoders and autoencoder stay where they are."""
        self.net.to(device)
        for name in self.helpers:
            getattr(self.pipe, name).to(device)

    @property
    def tokens(self) -> int:
        """How many tokens of a prompt are read."""
        name, usual = self.longest
        return self.config.tokens or usual or int(getattr(self.pipe, name).model_max_length)

    def check_length(self, text: str) -> None:
        """Raises GirsanovError if the end of a prompt would not be read."""
        tokenizer = getattr(self.pipe, self.longest[0])
        if tokenizer is None:
            return
        count = len(tokenizer(text, verbose=False).input_ids)
        if count > self.tokens:
            shown = text if len(text) <= 60 else f"{text[:57]}..."
            raise GirsanovError(
                f"the prompt {shown!r} has {count} tokens and {type(self.pipe).__name__} reads {self.tokens}: shorten "
                "it, or let long ones be cut with long_prompts=cut"
            )

    def decoder(self) -> Decoder:
        """States to data, in chunks."""
        return Decoder(self.pipe.vae, self.to_data, self.config.chunk)

    def encoder(self) -> Decoder:
        """Pictures to states, in chunks."""
        return Decoder(self.pipe.vae, self.to_latents, self.config.chunk)

    def model(self) -> Model:
        """The network with its process, kind of prediction, clock and decoder."""
        n = noising_of(self.pipe.scheduler)
        return Model(self.net, n.process, n.prediction, self.shape, self.decoder(), n.time, guide=self.guide)

    def guidance(self) -> float:
        """The scale of guidance that the pipeline uses when none is given; 1 for a model distilled to go without."""
        if getattr(self.pipe, "config", {}).get("is_distilled", False):
            return 1.0
        call = inspect.signature(type(self.pipe).__call__).parameters.get(self.scale_argument)
        return 1.0 if call is None else float(call.default)

    @property
    def rate(self) -> int:
        """Samples a second of audio."""
        return int(getattr(self.pipe.vae.config, "sampling_rate", 44100))

    @property
    def times(self) -> PipelineTimes:
        """The grids, as what ``{kind: pipeline, n: ...}`` in a configuration is built from."""
        return PipelineTimes(self.grid)


def known_projection(network: Any) -> bool:
    """Whether what projects a network's conditions is its own, and not that of an IP-adapter."""
    return "IPAdapter" not in type(network.encoder_hid_proj).__name__


def required(cond: Cond | None) -> Cond:
    """The conditions. Raises GirsanovError if there are none."""
    if cond is None:
        raise GirsanovError("this network takes conditions: pass those of its prompts (TextPrompts, ClassPrompts)")
    return cond


def rows(**tables: Tensor) -> list[Row]:
    """Tables [R, ...] as R rows."""
    count = len(next(iter(tables.values())))
    return [{k: v[i] for k, v in tables.items()} for i in range(count)]
