"""A causal language model with low-rank adapters and a head, as the network of a reward model of texts.

What is saved is what was trained: adapters and heads, and a digest of the model that they belong to. The members of an
ensemble are copies of the model with adapters that start differently.

Reference: Ouyang et al. 2022, arXiv:2203.02155, section 3.4 (the head); Hu et al. 2021, arXiv:2106.09685 (adapters).
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from girsanov.errors import GirsanovError
from girsanov.reward_models.fronts import TextFront
from girsanov.reward_models.frozen import device_here, digest
from girsanov.reward_models.scorers import ScorerConfig
from girsanov.settings import Count, settings
from girsanov.types import Cond, Prompts

TRAINED = re.compile(r"nets\.\d+\.(head\.|.*lora_)")
BASE = "base"  # the digest of the model, as bytes, among the saved tensors


class Tokens(TextFront):
    """Texts as token ids, padded at the end.

    Args:
        model: folder or name of the model whose tokenizer it is.
        tokenizer: another one.
        max_length: tokens of a row.
    """

    def __init__(self, model: str, tokenizer: str | None = None, max_length: int = 1024) -> None:
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length

    @cached_property
    def encoder(self) -> Any:
        """The tokenizer, read once."""
        from girsanov.language.load import load_encoder

        return load_encoder(self.tokenizer or self.model, self.max_length)

    def texts(self, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
        """Ids [N, L]. Raises GirsanovError with the row of what does not fit."""
        from girsanov.language.scorer import table, token_rows

        return table(token_rows(self.encoder, prompts, answers), self.encoder.filler).to(device_here())

    def asked(self, prompts: Prompts) -> Cond:
        """The prompts' own conditions."""
        return prompts.cond

    def complaint(self, prompt: str, answer: str) -> str | None:
        """Why a row of tokens cannot be made, or None."""
        from girsanov.language.scorer import token_complaint

        return token_complaint(self.encoder, prompt, answer)


@settings
class CausalConfig(ScorerConfig):
    """A causal language model with adapters and a head.

    Attributes:
        model: folder or name of the model.
        tokenizer: another tokenizer than the model's own.
        rank, alpha: of the adapters; alpha is the rank by default.
        targets: ends of the names of the layers that get adapters; all linear ones but the output by default.
        max_length: tokens of a row.
        dtype: of the model's weights; adapters and head are in float32.
    """

    model: str
    tokenizer: str | None = None
    rank: Count = 8
    alpha: Count | None = None
    targets: tuple[str, ...] | None = None
    max_length: Count = 1024
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def differentiable(self) -> bool:
        """Token ids have no gradient."""
        return False

    def one(self) -> nn.Module:
        """The model with fresh adapters and a head at zero. Raises GirsanovError if there is no such model."""
        from girsanov.language.load import add_adapters, load_language_model
        from girsanov.language.scorer import LanguageScorer

        dtype = getattr(torch, self.dtype)
        found = load_language_model(self.model, self.tokenizer, dtype=dtype, max_length=self.max_length)
        seed = int(torch.randint(2**31, ()))
        add_adapters(found.net, self.rank, self.alpha, self.targets, seed)
        return LanguageScorer(found.net.lm, found.encoder.filler)

    def tensors(self, net: nn.Module) -> Mapping[str, Tensor]:
        """Adapters, heads, and the digest of the model."""
        kept = {name: w for name, w in net.state_dict().items() if TRAINED.match(name)}
        return kept | {BASE: base_digest(net)}

    def fill(self, net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Puts them back. Raises GirsanovError if the model is another one than at the time of training."""
        if not torch.equal(tensors[BASE], base_digest(net)):
            raise GirsanovError(
                f"{self.model} is not the model that this reward model was trained on: its weights differ"
            )
        kept = {name: w for name, w in tensors.items() if name != BASE}
        lacking = {name for name in net.state_dict() if TRAINED.match(name)} ^ set(kept)
        if lacking:
            raise KeyError(min(lacking))
        net.load_state_dict(kept, strict=False, assign=True)


def base_digest(net: nn.Module) -> Tensor:
    """The digest of the model below the adapters of the first member, uint8 [32]."""
    weights = [(n, p) for n, p in net.named_parameters() if n.startswith("nets.0.") and not TRAINED.match(n)]
    return torch.frombuffer(bytearray(bytes.fromhex(digest(weights))), dtype=torch.uint8)
