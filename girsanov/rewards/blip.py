r"""BLIP's image tower and its text encoder that looks at the image, from a checkpoint in BLIP's own layout.

The networks are those of transformers, whose names differ in the image tower only; the text encoder's are the same:

=========================================  =============================================
BLIP                                       transformers
=========================================  =============================================
``visual_encoder.cls_token``               ``vision.embeddings.class_embedding``
``visual_encoder.pos_embed``               ``vision.embeddings.position_embedding``
``visual_encoder.patch_embed.proj``        ``vision.embeddings.patch_embedding``
``visual_encoder.blocks.i``                ``vision.encoder.layers.i``
``norm1``, ``norm2``, ``attn.proj``        ``layer_norm1``, ``layer_norm2``, ``self_attn.projection``
``attn.qkv``, ``mlp``                      ``self_attn.qkv``, ``mlp``
``visual_encoder.norm``                    ``vision.post_layernorm``
``text_encoder``                           ``text``
=========================================  =============================================

Sizes follow from the shapes; the heads of attention are 64 wide, as in every published BLIP. Projections for the
contrastive loss, and what else a checkpoint holds, are left out.

Reference: Li et al. 2022, arXiv:2201.12086.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from girsanov.errors import GirsanovError
from girsanov.rewards.pretrained import fill, transformers

WHOLE = {
    "visual_encoder.cls_token": "vision.embeddings.class_embedding",
    "visual_encoder.pos_embed": "vision.embeddings.position_embedding",
    "visual_encoder.patch_embed.proj.weight": "vision.embeddings.patch_embedding.weight",
    "visual_encoder.patch_embed.proj.bias": "vision.embeddings.patch_embedding.bias",
    "visual_encoder.norm.weight": "vision.post_layernorm.weight",
    "visual_encoder.norm.bias": "vision.post_layernorm.bias",
}
INSIDE = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
}
BLOCKS, LAYERS = "visual_encoder.blocks.", "vision.encoder.layers."
HEAD_WIDTH = 64


class Blip(nn.Module):
    """Both networks.

    Args:
        vision: a ``transformers.BlipVisionModel``.
        text: a ``transformers.BlipTextModel`` with cross-attention.
    """

    def __init__(self, vision: Any, text: Any) -> None:
        super().__init__()
        self.vision, self.text = vision, text
        self.size = int(vision.config.image_size)

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Features [B, F] at the first token of texts (ids, mask [B, L]) that have seen images [B, 3, size, size]."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen)
        return read.last_hidden_state[:, 0]


def from_blip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a ``Blip``."""
    found = {}
    for name, value in tensors.items():
        if name in WHOLE:
            found[WHOLE[name]] = value
        elif name.startswith(BLOCKS):
            number, _, rest = name.removeprefix(BLOCKS).partition(".")
            part, _, kind = rest.rpartition(".")
            found[f"{LAYERS}{number}.{INSIDE.get(part, part)}.{kind}"] = value
        elif name.startswith("text_encoder.") and not name.endswith("position_ids"):  # a buffer, made anew
            found[name.replace("text_encoder.", "text.", 1)] = value
    return found


def to_blip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``from_blip``."""
    whole, inside = ({v: k for k, v in table.items()} for table in (WHOLE, INSIDE))
    found = {}
    for name, value in tensors.items():
        if name in whole:
            found[whole[name]] = value
        elif name.startswith(LAYERS):
            number, _, rest = name.removeprefix(LAYERS).partition(".")
            part, _, kind = rest.rpartition(".")
            found[f"{BLOCKS}{number}.{inside.get(part, part)}.{kind}"] = value
        else:
            found[name.replace("text.", "text_encoder.", 1)] = value
    return found


def blip_of(tensors: Mapping[str, Tensor], place: str) -> Blip:
    """The networks with these weights, in BLIP's layout; ``place`` is for messages.

    Raises GirsanovError if they are not all there, or do not fit together.
    """
    own = from_blip(tensors)
    try:
        vision, text = vision_config(own), text_config(own)
    except KeyError as lacking:
        raise GirsanovError(f"{place} lacks {lacking.args[0]}: these weights belong to another model") from None
    package = transformers()
    model = Blip(package.BlipVisionModel(vision), package.BlipTextModel(text, add_pooling_layer=False))
    fill(model, own, place)
    return model


def count(tensors: Mapping[str, Tensor], stem: str) -> int:
    """The number of layers under a stem."""
    numbers = [int(m[1]) for name in tensors if (m := re.match(re.escape(stem) + r"(\d+)\.", name))]
    return 1 + max(numbers, default=-1)


def vision_config(own: Mapping[str, Tensor]) -> Any:
    """The image tower's configuration, from shapes. Raises KeyError."""
    width, _, patch, _ = own["vision.embeddings.patch_embedding.weight"].shape
    side = math.isqrt(own["vision.embeddings.position_embedding"].shape[1] - 1)
    return transformers().BlipVisionConfig(
        hidden_size=width,
        intermediate_size=own[f"{LAYERS}0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=count(own, LAYERS),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        image_size=patch * side,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )


def text_config(own: Mapping[str, Tensor]) -> Any:
    """The text encoder's configuration, from shapes. Raises KeyError."""
    vocabulary, width = own["text.embeddings.word_embeddings.weight"].shape
    return transformers().BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=own["text.encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=own["text.encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=count(own, "text.encoder.layer."),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        max_position_embeddings=own["text.embeddings.position_embeddings.weight"].shape[0],
        bos_token_id=None,  # nothing is generated
        sep_token_id=None,
    )
