r"""Features of published models, frozen: of pictures by CLIP, of texts by a causal language model.

*Pictures.* With f and g CLIP's features of a picture and its prompt, of length one and size S,

.. math:: \phi = \big( \sqrt S\, f,\; S\, f \odot g \big), \qquad \phi_{prompt} = \sqrt S\, g

has entries of order one, and a linear head on it holds both kinds of reward that people use: an aesthetic score
``w . f``, and the agreement with the prompt ``c = f . g``, the mean of the second half. Differentiable in the picture.

*Texts.* The hidden state of the last token of prompt and answer, after the model's last norm; of a prompt that of its
own last token.

*Which model.* A digest of its weights is kept, and another model under the same name is refused.

References: Kirstain et al. 2023, arXiv:2305.01569; Schuhmann et al. 2022, arXiv:2210.08402 (heads on CLIP); Wang et al.
2024, arXiv:2406.12845, section 3.1 (features of a language model).
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from girsanov.errors import GirsanovError
from girsanov.reward_models.fronts import PictureFront, TextFront, rows_of
from girsanov.rewards.clip import Towers
from girsanov.rewards.pixels import texts as words_of
from girsanov.types import Cond, Prompts

SAMPLE, BATCH = 256, 32


def digest(weights: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of the names and shapes of weights and the first 256 numbers of each, in float32."""
    found = hashlib.sha256()
    for name, p in weights:
        head = p.detach().flatten()[:SAMPLE].float().cpu().contiguous()
        found.update(f"{name} {list(p.shape)}".encode() + head.numpy().tobytes())
    return found.hexdigest()


def same(module: nn.Module, known: str, name: str) -> None:
    """Raises GirsanovError unless a model is the one with the digest; an empty one knows nothing."""
    if known and digest(module.named_parameters()) != known:
        raise GirsanovError(f"{name} is not the model that this reward model was trained on: its weights differ")


def place(name: str) -> str:
    """A folder as a path that holds wherever one stands, or a name on the hub as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def device_here() -> torch.device:
    """Where texts and files of pictures are read: the GPU of this process if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Clip(PictureFront):
    """Features of pictures and prompts by CLIP.

    Args:
        model: folder or name of a CLIP model of ``transformers``.
        weights: the digest of its weights; empty does not check.
    """

    differentiable = True

    def __init__(self, model: str, weights: str = "") -> None:
        self.model, self.weights = model, weights

    @classmethod
    def of(cls, model: str) -> "Clip":
        """The model that is there now. Raises GirsanovError if there is none."""
        found = cls(place(model))
        found.weights = digest(found.towers.model.named_parameters())
        return found

    @cached_property
    def towers(self) -> Towers:
        """The two towers, read once."""
        towers = Towers.load(self.model)
        same(towers.model, self.weights, self.model)
        return towers

    @property
    def width(self) -> int:
        """S."""
        return int(self.towers.model.config.projection_dim)

    def images(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Features [B, 2 S]. Raises GirsanovError if the prompts are no texts."""
        f = self.towers.images(x)
        g = self.towers.texts(words_of(prompts.meta, len(x), "trained"))
        return torch.cat([math.sqrt(self.width) * f, self.width * f * g], 1)

    def asked(self, prompts: Prompts) -> Cond:
        """The prompts' features, a table "prompt" [R, S]."""
        distinct, index = rows_of(words_of(prompts.meta, len(prompts), "trained"))
        g = math.sqrt(self.width) * self.towers.texts(distinct)
        return Cond({"prompt": g}, index.to(g.device))


class Language(TextFront):
    """Features of texts by a causal language model.

    Args:
        model: folder or name of one.
        weights: the digest of its weights; empty does not check.
        tokenizer: another tokenizer than the model's own.
        max_length: tokens of a row.
        dtype: of the model's weights, "float32" or "bfloat16".
    """

    def __init__(
        self,
        model: str,
        weights: str = "",
        tokenizer: str | None = None,
        max_length: int = 1024,
        dtype: str = "float32",
    ) -> None:
        self.model, self.weights, self.tokenizer = model, weights, tokenizer
        self.max_length, self.dtype = max_length, dtype

    @classmethod
    def of(cls, model: str, **more: Any) -> "Language":
        """The model that is there now. Raises GirsanovError if there is none."""
        found = cls(place(model), **more)
        found.weights = digest(found.loaded.net.lm.named_parameters())
        return found

    @cached_property
    def loaded(self) -> Any:
        """The language model with its tokenizer, read once."""
        from girsanov.language.load import load_language_model

        dtype = getattr(torch, self.dtype)
        found = load_language_model(self.model, self.tokenizer, dtype=dtype, max_length=self.max_length)
        same(found.net.lm, self.weights, self.model)
        found.net.requires_grad_(False)
        return found

    @property
    def width(self) -> int:
        """The size of a hidden state."""
        return int(self.loaded.net.lm.config.hidden_size)

    @torch.no_grad()
    def states(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """The last hidden state of rows of token ids, [N, H] float32; short rows with short ones."""
        from girsanov.language.scorer import last_states, table

        lm, filler = self.loaded.net.lm.to(device_here()), self.loaded.encoder.filler
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found = [
            last_states(lm, table([rows[i] for i in order[k : k + BATCH]], filler).to(device_here()), filler)
            for k in range(0, len(order), BATCH)
        ]
        back = torch.tensor(order).argsort()
        return torch.cat(found).to(torch.promote_types(found[0].dtype, torch.float32))[back]

    def texts(self, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
        """Features [N, H]. Raises GirsanovError with the row of what does not fit."""
        from girsanov.language.scorer import token_rows

        return self.states(token_rows(self.loaded.encoder, prompts, answers))

    def asked(self, prompts: Prompts) -> Cond:
        """The prompts' features, a table "prompt" [R, H]."""
        distinct, index = rows_of(words_of(prompts.meta, len(prompts), "trained"))
        states = self.states([self.loaded.encoder.prompt(text) for text in distinct])
        return Cond({"prompt": states}, index.to(states.device))

    def complaint(self, prompt: str, answer: str) -> str | None:
        """Why a row of tokens cannot be made, or None."""
        from girsanov.language.scorer import token_complaint

        return token_complaint(self.loaded.encoder, prompt, answer)
