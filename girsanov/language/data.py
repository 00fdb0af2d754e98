"""Requests and comparisons of texts, as the training loop carries them."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from girsanov.data.records import Segment
from girsanov.errors import GirsanovError
from girsanov.language.segments import token_weights
from girsanov.language.tokens import Completions, Encoder, Prompt, pad
from girsanov.noise import generator
from girsanov.precision import onto
from girsanov.prompts import Groups
from girsanov.store import fingerprint
from girsanov.types import Cond, Prompts

ANNOTATOR = 7401


@dataclass(frozen=True)
class ComparedTexts(Prompts):
    """Requests with their compared completions: [B, K, L], best first; which are there and their scores, [B, K].

    Attributes:
        items: the completions.
        valid: which are there, bool [B, K].
        score: of each, [B, K]; NaN where there is none.
        sign: +1 for a good completion, -1 for a bad one, [B, K]; None where they are compared.
        weight: of the tokens, [B, K, L], NaN where the method says it; None is 1.
        others: completions of other prompts, [B, L]: the first of the next row of the batch, over all processes; None
            if the batch has one row.
        source, total: a digest of the data set, and how many rows it has; ``group`` is the row of each.
    """

    items: Completions = field(kw_only=True)
    valid: Tensor = field(kw_only=True)
    score: Tensor | None = field(kw_only=True, default=None)
    sign: Tensor | None = field(kw_only=True, default=None)
    weight: Tensor | None = field(kw_only=True, default=None)
    others: Completions | None = field(kw_only=True, default=None)
    source: str = field(kw_only=True, default="")
    total: int = field(kw_only=True, default=0)

    def to(self, device: torch.device | str) -> "ComparedTexts":
        """The same on a device."""
        there = self._each(lambda v: v.to(device) if isinstance(v, Completions) else onto(v, device))
        return dataclasses.replace(self, cond=self.cond.to(device), **there)

    def take(self, index: Tensor) -> "ComparedTexts":
        """The chosen rows."""
        plain = Prompts(self.cond, self.ids, self.group, self.meta).take(index)
        on = index.to(self.valid.device)
        own = self._each(lambda v: v.take(on) if isinstance(v, Completions) else v[on])
        return dataclasses.replace(self, cond=plain.cond, ids=plain.ids, group=plain.group, meta=plain.meta, **own)

    def _each(self, do: Callable[[Any], Any]) -> dict[str, Any]:
        """What is done to every field of the completions, by name."""
        names = ("items", "valid", "score", "sign", "weight", "others")
        return {k: None if getattr(self, k) is None else do(getattr(self, k)) for k in names}


def nothing(n: int) -> Cond:
    """Conditions of n samples that have none."""
    return Cond({}, torch.zeros(n, dtype=torch.int64))


def text_of(prompt: Prompt) -> str:
    """A prompt as one text."""
    return prompt if isinstance(prompt, str) else "\n\n".join(f"{t['role']}: {t['content']}" for t in prompt)


@dataclass(frozen=True)
class TextComparisons:
    """N prompts with compared completions, served in epochs; a pure function of the iteration.

    Attributes:
        items: [N, K, L], best first.
        valid: which are there, bool [N, K].
        score: given scores [N, K], NaN where there is none, or None.
        texts: the prompts.
        sign: +1 for a good completion, -1 for a bad one, [N, K]; None where they are compared.
        weight: of the tokens, [N, K, L], NaN where the method says it; None is 1.
        batch_size: prompts an iteration, over all processes.
        seed: key of the order.
    """

    items: Completions
    valid: Tensor
    score: Tensor | None
    texts: tuple[str, ...]
    sign: Tensor | None = None
    weight: Tensor | None = None
    batch_size: int = 32
    seed: int = 0

    @classmethod
    def encode(
        cls,
        encoder: Encoder,
        rows: Iterable[tuple[Prompt, Sequence[str]]],
        scores: Iterable[Sequence[float] | None] | None = None,
        *,
        labels: Sequence[Sequence[bool] | None] | None = None,
        segments: Sequence[Sequence[Sequence[Segment]]] | None = None,
        names: Sequence[str] | None = None,
        **more: Any,
    ) -> "TextComparisons":
        """From prompts with their completions, best first.

        Args:
            encoder: the tokenizer.
            rows: prompts with their completions.
            scores: one a completion, or None for a row without.
            labels: whether each completion is good, or None for a row that is best first.
            segments: of each completion, what weighs more.
            names: what messages call the rows.
            more: batch size and seed.

        Raises GirsanovError with the row's name if a completion is empty, the first equals another one that it is
        compared with, a score is not a number, a segment lies outside its text, or a prompt is longer than the context.
        """
        found = list(rows)
        if not found:
            raise GirsanovError("there are no comparisons: give at least one row")
        names = names or [f"row {i}" for i in range(len(found))]
        k = max(len(c) for _, c in found)
        made, starts, there = list[list[int]](), list[int](), torch.zeros(len(found), k, dtype=torch.bool)
        for r, ((prompt, completions), name) in enumerate(zip(found, names, strict=True)):
            if not completions:
                raise GirsanovError(f"{name} has no completion: leave it out")
            if completions[0] in completions[1:] and not (labels and labels[r]):
                raise GirsanovError(f"{name}: chosen equals rejected; leave it out")
            for j in range(k):
                ids, start = encoder.row(prompt, completions[min(j, len(completions) - 1)], name)
                made.append(ids)
                starts.append(start)
                there[r, j] = j < len(completions)
        items = pad(made, starts, encoder.filler).unflat(k)
        weight = None
        if segments is not None and any(any(marks) for marks in segments):
            weight = torch.ones(items.tokens.shape)
            for r, ((prompt, completions), marks, name) in enumerate(zip(found, segments, names, strict=True)):
                for j, (text, own) in enumerate(zip(completions, marks, strict=True)):
                    ids, start = made[r * k + j], starts[r * k + j]
                    weight[r, j, : len(ids)] = token_weights(encoder, prompt, text, ids, start, own, name)
        texts = tuple(text_of(p) for p, _ in found)
        return cls(items, there, _scores(scores, there, names), texts, _signs(labels, there), weight, **more)

    def __len__(self) -> int:
        return len(self.valid)

    @cached_property
    def digest(self) -> str:
        """A digest of the rows."""
        parts = (self.items.tokens, self.items.own, self.valid, *([] if self.weight is None else [self.weight]))
        sums = "".join(fingerprint(v) for v in parts)
        return hashlib.sha256(sums.encode()).hexdigest()[:24]

    def batch(self, iteration: int, rank: int = 0, world_size: int = 1) -> ComparedTexts:
        """This process's rows of an iteration; ``group`` is the row of each."""
        order = Groups(len(self), self.batch_size, 1, self.seed)
        rows, ids, _ = order.share(iteration, rank, world_size)
        meta = tuple(self.texts[r] for r in rows.tolist())
        parts: dict[str, Any] = {"items": self.items.take(rows), "valid": self.valid[rows]}
        for name in ("score", "sign", "weight"):
            every = getattr(self, name)
            parts[name] = None if every is None else every[rows]
        if self.batch_size > 1:
            after = order.rows(iteration).roll(-1)[ids]
            first = self.items.take(after)
            parts["others"] = Completions(first.tokens[:, 0], first.real[:, 0], first.own[:, 0])
        return ComparedTexts(nothing(len(rows)), ids, rows, meta, **parts, source=self.digest, total=len(self))


def _scores(scores: Iterable[Sequence[float] | None] | None, there: Tensor, names: Sequence[str]) -> Tensor | None:
    """Scores [N, K], NaN where there is none. Raises GirsanovError for one that is not a finite number."""
    if scores is None:
        return None
    given = torch.full(there.shape, torch.nan, dtype=torch.float64)
    for r, (row, name) in enumerate(zip(scores, names, strict=True)):
        values = torch.tensor([] if row is None else list(row), dtype=torch.float64)
        if not bool(values.isfinite().all()) or len(values) not in (0, int(there[r].sum())):
            raise GirsanovError(f"{name} needs one finite score a completion, not {row}")
        given[r, : len(values)] = values
    return given


def _signs(labels: Sequence[Sequence[bool] | None] | None, there: Tensor) -> Tensor | None:
    """+1 good, -1 bad, [N, K]: by the labels, else the first good and the others bad; None without any label."""
    if labels is None or not any(labels):
        return None
    sign = -torch.ones(there.shape, dtype=torch.float64)
    sign[:, 0] = 1.0
    for r, row in enumerate(labels):
        if row is not None:
            sign[r, : len(row)] = torch.tensor([1.0 if good else -1.0 for good in row], dtype=torch.float64)
    return sign


@dataclass(frozen=True, kw_only=True)
class TextRequests:
    """Prompts to complete, in whole groups.

    Attributes:
        texts: the prompts; ``meta`` of a sample is its own.
        groups_per_batch: prompts asked for in an iteration, over all processes.
        group_size: completions of each.
        seed: key of the order.
    """

    texts: Sequence[Prompt]
    groups_per_batch: int
    group_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.texts, str) or not self.texts:
            raise GirsanovError("texts is a list of prompts, at least one")
        Groups(len(self.texts), self.groups_per_batch, self.group_size, self.seed)

    def batch(self, iteration: int, rank: int = 0, world_size: int = 1) -> Prompts:
        """This process's requests, the samples of a group side by side."""
        order = Groups(len(self.texts), self.groups_per_batch, self.group_size, self.seed)
        rows, ids, group = order.share(iteration, rank, world_size)
        meta = tuple(self.texts[r] for r in rows.tolist() for _ in range(self.group_size))
        return Prompts(nothing(len(ids)), ids, group, meta)


def annotate(
    texts: Sequence[Sequence[str]], score: Callable[[Sequence[str]], Tensor], temperature: float, seed: int
) -> tuple[list[list[str]], list[list[float]]]:
    """Each row's texts in the order of a Plackett-Luce annotator, and their scores over the temperature.

    Texts that are equal are kept once; a row with a single text is left out by the caller.
    """
    g = generator((seed, ANNOTATOR))
    ordered, scored = list[list[str]](), list[list[float]]()
    for row in texts:
        r = score(row).double() / temperature
        u = torch.rand(len(row), generator=g, dtype=torch.float64).clamp_min(1e-300)
        order = (r - (-u.log()).log()).argsort(descending=True).tolist()
        ordered.append([row[i] for i in order])
        scored.append([float(r[i]) for i in order])
    return ordered, scored
