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


def sd2() -> Any:
    """Stable Diffusion 2.x: predicts v."""
    return stable_diffusion("v_prediction")


def sdxl() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    tokenizer = clip_tokenizer()
    network = unet(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    published = {"timestep_spacing": "leading", "steps_offset": 1, "clip_sample": False}
    scheduler = EulerDiscreteScheduler.from_config({**BETAS, **published})
    return StableDiffusionXLPipeline(
        vae=autoencoder(force_upcast=True),
        text_encoder=clip_text(tokenizer),
        text_encoder_2=clip_text(tokenizer, projection=True),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=network,
        scheduler=scheduler,
        add_watermarker=False,
    )


def flux() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    clip, t5 = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=autoencoder(shift_factor=0.1, scaling_factor=0.4, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text(clip),
        tokenizer=clip,
        text_encoder_2=t5_text(t5),
        tokenizer_2=t5,
        transformer=shaken(transformer),
    )


def qwen_image() -> Any:
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = qwen_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    }
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 16}
    language = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.8, 1.0, 2.0],
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
    )
    return QwenImagePipeline(
        scheduler=scheduler,
        vae=shaken(vae),
        text_encoder=shaken(language),
        tokenizer=tokenizer,
        transformer=shaken(transformer),
    )


def sana() -> Any:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    tokenizer = gemma_tokenizer()
    language = Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    )
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
    )
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        scaling_factor=0.41407,
    )
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=shaken(language),
        vae=shaken(vae),
        transformer=shaken(transformer),
        scheduler=scheduler,
    )


def wan() -> Any:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

    t5 = t5_tokenizer()
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.8, 1.0, 2.0],
        scale_factor_spatial=2,
        scale_factor_temporal=2,
    )
    return WanPipeline(
        tokenizer=t5,
        text_encoder=t5_text(t5, "UMT5EncoderModel"),
        transformer=shaken(transformer),
        vae=shaken(vae),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )


def stable_audio() -> Any:
    from diffusers import (
        AutoencoderOobleck,
        EDMDPMSolverMultistepScheduler,
        StableAudioDiTModel,
        StableAudioPipeline,
        StableAudioProjectionModel,
    )

    t5 = t5_tokenizer()
    transformer = StableAudioDiTModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        cross_attention_dim=32,
        time_proj_dim=16,
        global_states_input_dim=32,
        cross_attention_input_dim=16,
    )
    vae = AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
        decoder_channels=8,
        decoder_input_channels=4,
        sampling_rate=64,
    )
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_min=0.3, sigma_max=500, sigma_data=1.0, sigma_schedule="exponential", prediction_type="v_prediction"
    )
    return StableAudioPipeline(
        vae=shaken(vae),
        text_encoder=t5_text(t5),
        projection_model=shaken(StableAudioProjectionModel(16, 16, 0, 4)),
        tokenizer=t5,
        transformer=shaken(transformer),
        scheduler=scheduler,
    )


def sd3() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    clip, t5 = clip_tokenizer(), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    return StableDiffusion3Pipeline(
        transformer=shaken(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text(clip, projection=True),
        tokenizer=clip,
        text_encoder_2=clip_text(clip, projection=True),
        tokenizer_2=clip,
        text_encoder_3=t5_text(t5, width=32),
        tokenizer_3=t5,
    )


def flux2_klein() -> Any:
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = qwen_tokenizer()
    language = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=27,  # the pipeline reads the states after layers 9, 18 and 27
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
        )
    )
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
        timestep_guidance_channels=16,
    )
    vae = AutoencoderKLFlux2(
        latent_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        layers_per_block=1,
    )
    vae.bn.running_mean.copy_(torch.linspace(-0.3, 0.4, 16))
    vae.bn.running_var.copy_(torch.linspace(0.5, 2.0, 16))
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="exponential", shift=3.0),
        vae=shaken(vae),
        text_encoder=shaken(language),
        tokenizer=tokenizer,
        transformer=shaken(transformer),
    )


def dit() -> Any:
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_num_groups=2,
    )
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False)
    return DiTPipeline(transformer=shaken(transformer), vae=autoencoder(), scheduler=scheduler)


def pixart() -> Any:
    from diffusers import DDIMScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    t5 = t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=16,
        norm_num_groups=2,
        use_additional_conditions=False,
    )
    return PixArtSigmaPipeline(
        tokenizer=t5,
        text_encoder=t5_text(t5),
        vae=autoencoder(),
        transformer=shaken(transformer),
        scheduler=DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1),
    )


def controlnet() -> Any:
    from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionControlNetPipeline

    tokenizer = clip_tokenizer()
    network = ControlNetModel(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        conditioning_embedding_out_channels=(4, 4),
    )
    return StableDiffusionControlNetPipeline(
        vae=autoencoder(),
        text_encoder=clip_text(tokenizer),
        tokenizer=tokenizer,
        unet=unet(),
        controlnet=shaken(network, 0.2),
        scheduler=DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sit_checkpoint(path: Path, **config: Any) -> Path:
    """A small SiT in the layout of the published files."""
    from girsanov.adapters.sit import SiTNetwork

    settings = {"size": 8, "patch": 2, "channels": 4, "out_channels": 8, "width": 32, "depth": 2, "heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(shaken(SiTNetwork(**(settings | {"classes": 10} | config))).state_dict(), path)
    return path


FAMILIES: dict[str, Callable[[], Any]] = {
    "sd15": stable_diffusion,
    "sd3": sd3,
    "flux2-klein": flux2_klein,
    "sd2": sd2,
    "sdxl": sdxl,
    "flux": flux,
    "qwen-image": qwen_image,
    "sana": sana,
    "wan": wan,
    "stable-audio": stable_audio,
    "dit": dit,
    "pixart": pixart,
    "controlnet": controlnet,
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
