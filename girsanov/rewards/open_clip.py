r"""Weights in the layout of open_clip as a ``transformers.CLIPModel``, and back.

The two packages hold the same numbers. What differs: query, key and value are one matrix in open_clip, and the two
projections are applied from the right there, so they are transposed here.

=========================================  ==================================================
open_clip                                  transformers
=========================================  ==================================================
``visual.conv1.weight``                    ``vision_model.embeddings.patch_embedding.weight``
``visual.ln_pre``, ``visual.ln_post``      ``vision_model.pre_layrnorm``, ``post_layernorm``
``visual.proj``                            ``visual_projection.weight``, transposed
``token_embedding``, ``ln_final``          in ``text_model``
``text_projection``                        ``text_projection.weight``, transposed
``[visual.]transformer.resblocks.i``       ``[vision|text]_model.encoder.layers.i``
``attn.in_proj_weight``, ``_bias``         ``self_attn.[q|k|v]_proj``, one above the other
``ln_1``, ``ln_2``                         ``layer_norm1``, ``layer_norm2``
``mlp.c_fc``, ``mlp.c_proj``               ``mlp.fc1``, ``mlp.fc2``
=========================================  ==================================================
"""

from collections.abc import Mapping

import torch
from torch import Tensor

WHOLE = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
TURNED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
STACKS = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "transformer.resblocks.": "text_model.encoder.layers.",
}
INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
LEFT_OUT = ("attn_mask",)  # buffers of old checkpoints, made anew


def from_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a ``transformers.CLIPModel``; names of neither layout are kept as they are."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name in TURNED:
            found[TURNED[name]] = value.T.contiguous()
        elif name not in LEFT_OUT:
            found |= _layer_in(name, value) or {WHOLE.get(name, name): value}
    return found


def _layer_in(name: str, value: Tensor) -> dict[str, Tensor]:
    """The tensors that one tensor of a layer becomes; none if it is of no layer."""
    for ours, theirs in STACKS.items():
        if not name.startswith(ours):
            continue
        number, _, rest = name.removeprefix(ours).partition(".")
        if rest.startswith("attn.in_proj_"):
            kind = rest.removeprefix("attn.in_proj_")
            stem = f"{theirs}{number}.self_attn."
            return {f"{stem}{p}_proj.{kind}": v for p, v in zip("qkv", value.chunk(3), strict=True)}
        part, _, kind = rest.rpartition(".")
        return {f"{theirs}{number}.{INSIDE.get(part, part)}.{kind}": value}
    return {}


def to_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict in open_clip's layout, of that of a ``transformers.CLIPModel``: the inverse of the above."""
    whole, turned = ({v: k for k, v in table.items()} for table in (WHOLE, TURNED))
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name in turned:
            found[turned[name]] = value.T.contiguous()
        elif name in whole:
            found[whole[name]] = value
        else:
            found |= _layer_out(name, tensors)
    return found


def _layer_out(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensor of a layer that this one belongs to; query, key and value are put together at the query."""
    for theirs, ours in STACKS.items():
        if not name.startswith(ours):
            continue
        number, _, rest = name.removeprefix(ours).partition(".")
        part, _, kind = rest.rpartition(".")
        if part in ("self_attn.k_proj", "self_attn.v_proj"):
            return {}
        if part == "self_attn.q_proj":
            joined = [tensors[name.replace("q_proj", f"{p}_proj")] for p in "qkv"]
            return {f"{theirs}{number}.attn.in_proj_{kind}": torch.cat(joined)}
        inside = {v: k for k, v in INSIDE.items()}
        return {f"{theirs}{number}.{inside.get(part, part)}.{kind}": tensors[name]}
    return {name: tensors[name]}
