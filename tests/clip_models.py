"""A tiny CLIP of the real classes with random weights, saved to a folder as published ones are."""

from pathlib import Path
from typing import Any

import torch

from tests.pipelines import clip_tokenizer, shaken

SIZE, PATCH, WIDTH, SHARED = 16, 8, 16, 12


def clip_config(tokenizer: Any) -> Any:
    from transformers import CLIPConfig

    shape = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {k: getattr(tokenizer, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return CLIPConfig(
        text_config={"vocab_size": len(tokenizer), "max_position_embeddings": 20, "hidden_act": "gelu"}
        | shape
        | special,
        vision_config={"image_size": SIZE, "patch_size": PATCH, "hidden_act": "gelu", **shape},
        projection_dim=SHARED,
    )


def save_clip(folder: Path) -> Path:
    """Model and tokenizer in a folder."""
    from transformers import CLIPModel

    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    shaken(CLIPModel(clip_config(tokenizer)), 0.2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
