"""Texts as tokens: prompts, completions, chat templates, and which tokens are scored.

A row is the prompt's tokens, then the completion's, then padding. ``own`` marks the completion's: their log-probs are
the completion's log-prob, and the prompt is never scored (prompt masking). The end token belongs to the completion, so
that a model learns to stop.

*Chats.* A conversation goes through the tokenizer's chat template: the prompt up to where the answer begins, then the
whole with the answer. Where the template changes what came before (some do), the answer's own tokens are appended.

*What does not fit.* A completion is cut at the end of the context; a prompt that leaves it no room is an error.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from girsanov.errors import GirsanovError

Prompt = str | Sequence[Mapping[str, str]]
"""A text, or a conversation ``[{"role": "user", "content": "..."}, ...]``."""


@dataclass(frozen=True)
class Completions:
    """Prompts with completions, padded at the end.

    Attributes:
        tokens: int64 [..., L].
        real: which tokens are no padding, bool [..., L].
        own: which belong to the completion, bool [..., L]; never the first of a row.
    """

    tokens: Tensor
    real: Tensor
    own: Tensor

    def __post_init__(self) -> None:
        if not self.tokens.shape == self.real.shape == self.own.shape:
            raise GirsanovError("tokens and their masks must have one shape")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> Tensor:
        """Tokens of each completion, int64 [...]."""
        return self.own.sum(-1)

    def take(self, index: Tensor) -> "Completions":
        """The chosen rows."""
        index = index.to(self.tokens.device)
        return Completions(self.tokens[index], self.real[index], self.own[index])

    def to(self, device: torch.device | str) -> "Completions":
        """The same on a device."""
        return Completions(self.tokens.to(device), self.real.to(device), self.own.to(device))

    def flat(self) -> "Completions":
        """As rows [B, L], without the columns that are padding everywhere."""
        tokens, real, own = (v.flatten(0, -2) for v in (self.tokens, self.real, self.own))
        longest = int(real.any(0).sum())
        return Completions(tokens[:, :longest], real[:, :longest], own[:, :longest])

    def unflat(self, items: int) -> "Completions":
        """Rows [B K, L] as [B, K, L]."""
        shape = (-1, items)
        return Completions(*(v.unflatten(0, shape) for v in (self.tokens, self.real, self.own)))


def pad(rows: Sequence[Sequence[int]], starts: Sequence[int], filler: int) -> Completions:
    """Rows of token ids, the completion from ``start`` on, as one batch."""
    longest = max(map(len, rows))
    tokens = torch.full((len(rows), longest), filler, dtype=torch.int64)
    place = torch.arange(longest)
    ends, begins = torch.tensor([len(r) for r in rows]), torch.tensor(list(starts))
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(list(ids), dtype=torch.int64)
    real = place < ends[:, None]
    return Completions(tokens, real, real & (place >= begins[:, None]))


def join(parts: Sequence[Completions], filler: int = 0) -> Completions:
    """Batches of different lengths below each other."""
    longest = max(p.tokens.shape[-1] for p in parts)

    def widened(name: str, value: Any) -> Tensor:
        wide = [
            torch.nn.functional.pad(getattr(p, name), (0, longest - p.tokens.shape[-1]), value=value) for p in parts
        ]
        return torch.cat(wide)

    return Completions(widened("tokens", filler), widened("real", False), widened("own", False))


@dataclass(frozen=True)
class Encoder:
    """A tokenizer with what it takes to make rows.

    Attributes:
        tokenizer: one of ``transformers``.
        max_length: tokens of a row.
        template: use the chat template: always, never, or (None) for conversations and where the tokenizer has one.
    """

    tokenizer: Any
    max_length: int = 1024
    template: bool | None = None

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise GirsanovError("the tokenizer has no end token: set tokenizer.eos_token, completions must end")
        if self.max_length < 2:
            raise GirsanovError(f"a row of {self.max_length} tokens holds no prompt and completion: use 2 or more")

    @property
    def end(self) -> int:
        """The end token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def filler(self) -> int:
        """What rows are padded with."""
        found = self.tokenizer.pad_token_id
        return self.end if found is None else int(found)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _chat(self, prompt: Prompt) -> list[dict[str, str]] | None:
        """The conversation that goes through the template, or None."""
        plain = isinstance(prompt, str)
        has = getattr(self.tokenizer, "chat_template", None) is not None
        wanted = (not plain or has) if self.template is None else self.template
        if not wanted:
            if not plain:
                raise GirsanovError("a conversation needs the tokenizer's chat template: leave template=None")
            return None
        if not has:
            raise GirsanovError("the tokenizer has no chat template: set tokenizer.chat_template, or give plain texts")
        return [{"role": "user", "content": str(prompt)}] if plain else [dict(turn) for turn in prompt]  # type: ignore[arg-type]

    def _rendered(self, turns: list[dict[str, str]], begin: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=begin)
        return text

    def prompt(self, prompt: Prompt, where: str = "the prompt") -> list[int]:
        """Tokens of a prompt. Raises GirsanovError if they leave no room for a completion."""
        turns = self._chat(prompt)
        if turns is not None:
            ids = self._ids(self._rendered(turns, True))
        else:
            ids = list(self.tokenizer(prompt).input_ids)
            ids = ids[:-1] if ids[-1:] == [self.end] and prompt else ids
        if not ids:  # the first token of a row is never scored
            start = self.tokenizer.bos_token_id
            ids = [self.end if start is None else int(start)]
        if len(ids) >= self.max_length:
            raise GirsanovError(
                f"{where} has {len(ids)} tokens and a row at most {self.max_length}: shorten it, or raise max_length"
            )
        return ids

    def row(self, prompt: Prompt, completion: str, where: str = "the row") -> tuple[list[int], int]:
        """Tokens of a row, and where its completion starts. Raises GirsanovError if the completion is empty."""
        if not completion:
            raise GirsanovError(f"{where} has an empty completion: leave it out")
        head, turns = self.prompt(prompt, where), self._chat(prompt)
        tail = None
        if turns is not None:
            whole = self._ids(self._rendered([*turns, {"role": "assistant", "content": completion}], False))
            if whole[: len(head)] == head:
                tail = whole[len(head) :]
        if tail is None:
            tail = self._ids(completion)
        if self.end not in tail:
            tail = [*tail, self.end]
        return (head + tail)[: self.max_length], len(head)

    def texts_of(self, prompt: Prompt, completion: str) -> list[tuple[str, int]]:
        """The texts that may have become the completion's tokens, and where in them it begins: the whole conversation
        as the template writes it, and the completion by itself."""
        found, turns = [(completion, 0)], self._chat(prompt)
        if turns is not None:
            whole = self._rendered([*turns, {"role": "assistant", "content": completion}], False)
            if completion in whole:
                found.insert(0, (whole, whole.rindex(completion)))
        return found

    def batch(self, rows: Sequence[tuple[Prompt, str]], names: Sequence[str] | None = None) -> Completions:
        """Rows of prompts and completions."""
        names = names or [f"row {i}" for i in range(len(rows))]
        made = [self.row(p, c, name) for (p, c), name in zip(rows, names, strict=True)]
        return pad([ids for ids, _ in made], [start for _, start in made], self.filler)

    def texts(self, batch: Completions) -> list[str]:
        """The completions of rows [B, L] as text, without special tokens."""
        rows = [t[o].tolist() for t, o in zip(batch.tokens.cpu(), batch.own.cpu(), strict=True)]
        return [str(self.tokenizer.decode(ids, skip_special_tokens=True)) for ids in rows]

    def with_length(self, max_length: int) -> "Encoder":
        """The same with longer or shorter rows."""
        return dataclasses.replace(self, max_length=max_length)
