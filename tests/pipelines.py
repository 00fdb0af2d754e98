"""Every family's pipeline, tiny: real classes built from their configurations, random weights, a tokeniser trained on
a few lines, saved to a folder. What a test loads it loads with ``from_pretrained`` from that folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LINES = [
    "a photo of a red fox in the snow",
    "an oil painting of a lighthouse at night, stormy sea",
    "three blue cubes on a wooden table",
    "a watercolour of a quiet street in the rain",
    "blurry, low quality, cropped",
    "the sound of a violin in a large hall",
]
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def shaken(module: torch.nn.Module, scale: float = 0.05) -> torch.nn.Module:
    """The module with noise on every weight: layers that start at zero would hide what feeds them."""
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g))
    return module.eval()


# ---- text encoders


def clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer().train_new_from_iterator(LINES, 400)
    tokenizer.model_max_length = 77
    return tokenizer


def t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    tokenizer = T5Tokenizer(extra_ids=0).train_new_from_iterator(LINES, 120)
    tokenizer.model_max_length = 32
    return tokenizer


def qwen_tokenizer() -> Any:
    from transformers import Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer().train_new_from_iterator([*LINES, "user assistant system describe the image"], 400)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.padding_side = "right"
    return tokenizer


def gemma_tokenizer() -> Any:
    from transformers import GemmaTokenizer

    return GemmaTokenizer().train_new_from_iterator(LINES, 300)


def clip_text(tokenizer: Any, width: int = 16, projection: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return shaken((CLIPTextModelWithProjection if projection else CLIPTextModel)(config))


def t5_text(tokenizer: Any, cls: str = "T5EncoderModel", width: int = 16) -> Any:
    import transformers

    config = {"T5EncoderModel": transformers.T5Config, "UMT5EncoderModel": transformers.UMT5Config}[cls](
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    return shaken(getattr(transformers, cls)(config))


# ---- autoencoders


def autoencoder(latents: int = 4, **config: Any) -> Any:
    from diffusers import AutoencoderKL

    return shaken(
        AutoencoderKL(
            latent_channels=latents,
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=2,
            layers_per_block=1,
            **config,
        )
    )


# ---- families


def unet(**config: Any) -> Any:
    from diffusers import UNet2DConditionModel

    settings = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
    }
    return shaken(UNet2DConditionModel(**(settings | config)))


def stable_diffusion(prediction: str = "epsilon") -> Any:
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    tokenizer = clip_tokenizer()
    published = {"clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}
    scheduler = PNDMScheduler.from_config({**BETAS, **published, "prediction_type": prediction})
    return StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=clip_text(tokenizer),
        tokenizer=tokenizer,
        unet=unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "sd15": stable_diffusion,
}
"""Every tiny pipeline by a short name."""


def folder_of(name: str, root: Path) -> Path:
    """The folder that holds the tiny pipeline of a family, made on first use."""
    path = root / name
    if not path.exists():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            FAMILIES[name]().save_pretrained(path)
    return path
