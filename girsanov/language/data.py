"""Requests and comparisons of texts, as the training loop carries them."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.language.tokens import Completions, Encoder, Prompt, pad
from girsanov.noise import generator
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
        source, total: a digest of the data set, and how many rows it has; ``group`` is the row of each.
    """

    items: Completions = field(kw_only=True)
    valid: Tensor = field(kw_only=True)
    score: Tensor | None = field(kw_only=True, default=None)
    source: str = field(kw_only=True, default="")
    total: int = field(kw_only=True, default=0)

    def to(self, device: torch.device | str) -> "ComparedTexts":
        """The same on a device."""
        score = None if self.score is None else self.score.to(device)
        return dataclasses.replace(
            self, cond=self.cond.to(device), items=self.items.to(device), valid=self.valid.to(device), score=score
        )

    def take(self, index: Tensor) -> "ComparedTexts":
        """The chosen rows."""
        plain = Prompts(self.cond, self.ids, self.group, self.meta).take(index)
        on = index.to(self.valid.device)
        score = None if self.score is None else self.score[on]
        rows = {"cond": plain.cond, "ids": plain.ids, "group": plain.group, "meta": plain.meta}
        return dataclasses.replace(self, **rows, items=self.items.take(on), valid=self.valid[on], score=score)  # type: ignore[arg-type]


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
        batch_size: prompts an iteration, over all processes.
        seed: key of the order.
    """

    items: Completions
    valid: Tensor
    score: Tensor | None
    texts: tuple[str, ...]
    batch_size: int = 32
    seed: int = 0

    @classmethod
    def encode(
        cls,
        encoder: Encoder,
        rows: Iterable[tuple[Prompt, Sequence[str]]],
        scores: Iterable[Sequence[float] | None] | None = None,
        *,
        names: Sequence[str] | None = None,
        **more: Any,
    ) -> "TextComparisons":
        """From prompts with their completions, best first.

        Raises GirsanovError with the row's name if a completion is empty, the first two are equal, a score is not a
        number, or a prompt is longer than the context.
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
            if len(completions) > 1 and completions[0] == completions[1]:
                raise GirsanovError(f"{name}: chosen equals rejected; leave it out")
            for j in range(k):
                ids, start = encoder.row(prompt, completions[min(j, len(completions) - 1)], name)
                made.append(ids)
                starts.append(start)
                there[r, j] = j < len(completions)
        given = None
        if scores is not None:
            given = torch.full((len(found), k), torch.nan, dtype=torch.float64)
            for r, (row, name) in enumerate(zip(scores, names, strict=True)):
                values = torch.tensor([] if row is None else list(row), dtype=torch.float64)
                if not bool(values.isfinite().all()) or len(values) not in (0, int(there[r].sum())):
                    raise GirsanovError(f"{name} needs one finite score a completion, not {row}")
                given[r, : len(values)] = values
        items = pad(made, starts, encoder.filler).unflat(k)
        return cls(items, there, given, tuple(text_of(p) for p, _ in found), **more)

    def __len__(self) -> int:
        return len(self.valid)

    @cached_property
    def digest(self) -> str:
        """A digest of the rows."""
        sums = "".join(fingerprint(v) for v in (self.items.tokens, self.items.own, self.valid))
        return hashlib.sha256(sums.encode()).hexdigest()[:24]

    def batch(self, iteration: int, rank: int = 0, world_size: int = 1) -> ComparedTexts:
        """This process's rows of an iteration; ``group`` is the row of each."""
        rows, ids, _ = Groups(len(self), self.batch_size, 1, self.seed).share(iteration, rank, world_size)
        score = None if self.score is None else self.score[rows]
        meta = tuple(self.texts[r] for r in rows.tolist())
        parts: dict[str, Any] = {"items": self.items.take(rows), "valid": self.valid[rows], "score": score}
        return ComparedTexts(nothing(len(rows)), ids, rows, meta, **parts, source=self.digest, total=len(self))


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
