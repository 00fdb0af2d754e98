"""Recipes for models that people use: the recipes for texts and classes with a model's name, and published settings.

Each is its data: the name on the hub here, the settings in ``girsanov/presets/NAME.yaml``.
"""

from typing import ClassVar

from girsanov.config import Part
from girsanov.methods.base import Method
from girsanov.recipes.base import RunConfig
from girsanov.recipes.class_to_image import ClassToImage, ClassToImageConfig
from girsanov.recipes.text_to_image import TextToImage, TextToImageConfig
from girsanov.settings import settings


@settings
class SD15Config(TextToImageConfig):
    """Stable Diffusion 1.5."""

    method: Part[Method] = Part("ddpo")
    model: str | None = "stable-diffusion-v1-5/stable-diffusion-v1-5"


class SD15(TextToImage):
    """Tune Stable Diffusion 1.5."""

    name: ClassVar[str] = "sd15"
    summary: ClassVar[str] = "Stable Diffusion 1.5; prompts=FILE, and --model for another one"
    config: ClassVar[type[RunConfig]] = SD15Config


@settings
class SDXLConfig(TextToImageConfig):
    """Stable Diffusion XL, the base model."""

    method: Part[Method] = Part("diffusion-dpo")
    model: str | None = "stabilityai/stable-diffusion-xl-base-1.0"


class SDXL(TextToImage):
    """Tune Stable Diffusion XL."""

    name: ClassVar[str] = "sdxl"
    summary: ClassVar[str] = "Stable Diffusion XL base; prompts=FILE"
    config: ClassVar[type[RunConfig]] = SDXLConfig


@settings
class SD3Config(TextToImageConfig):
    """Stable Diffusion 3.5 medium."""

    method: Part[Method] = Part("flow-grpo")
    model: str | None = "stabilityai/stable-diffusion-3.5-medium"


class SD3(TextToImage):
    """Tune Stable Diffusion 3.5."""

    name: ClassVar[str] = "sd3"
    summary: ClassVar[str] = "Stable Diffusion 3.5 medium; prompts=FILE"
    config: ClassVar[type[RunConfig]] = SD3Config


@settings
class FluxConfig(TextToImageConfig):
    """FLUX.1-dev."""

    method: Part[Method] = Part("flow-grpo")
    model: str | None = "black-forest-labs/FLUX.1-dev"


class Flux(TextToImage):
    """Tune FLUX.1-dev."""

    name: ClassVar[str] = "flux"
    summary: ClassVar[str] = "FLUX.1-dev; prompts=FILE"
    config: ClassVar[type[RunConfig]] = FluxConfig


@settings
class Flux2KleinConfig(TextToImageConfig):
    """FLUX.2-Klein, the base model: published settings are for it, not for the one distilled to four steps."""

    method: Part[Method] = Part("nft")
    model: str | None = "black-forest-labs/FLUX.2-klein-base-4B"


class Flux2Klein(TextToImage):
    """Tune FLUX.2-Klein."""

    name: ClassVar[str] = "flux2-klein"
    summary: ClassVar[str] = "FLUX.2-Klein, base 4B; prompts=FILE"
    config: ClassVar[type[RunConfig]] = Flux2KleinConfig


@settings
class SiTConfig(ClassToImageConfig):
    """SiT-XL/2 at 256 pixels: the published checkpoint, and the autoencoder it was trained with."""

    method: Part[Method] = Part("ode-am")
    model: str | None = "SiT-XL-2-256x256.pt,stabilityai/sd-vae-ft-ema"


class SiT(ClassToImage):
    """Tune SiT-XL/2."""

    name: ClassVar[str] = "sit"
    summary: ClassVar[str] = "SiT-XL/2, class-conditional; --model FILE.pt,VAE"
    config: ClassVar[type[RunConfig]] = SiTConfig
