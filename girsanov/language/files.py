"""Comparisons from a file of preferences (``girsanov data``), as rows of a language model.

Strictly ranked rows stay whole, those with ties are taken apart into pairs. A row that cannot be used (a prompt longer
than the context, an empty completion, chosen equal to rejected, nothing that says which is better) is left out and told
by its place; the others are kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from girsanov.data.open import open_preferences
from girsanov.data.rankings import HELD_OUT, in_share, rankings
from girsanov.data.records import Item, Preference
from girsanov.errors import GirsanovError
from girsanov.language.data import TextComparisons, text_of
from girsanov.language.tokens import Encoder, Prompt


@dataclass(frozen=True)
class Row:
    """One comparison: its prompt, the completions best first, their scores if all are known, and its split."""

    prompt: Prompt
    completions: tuple[str, ...]
    scores: tuple[float, ...] | None
    split: str

    def held_out(self, share: float) -> bool:
        """Whether it is to test on: by its split, else by the digest of its prompt."""
        return self.split in HELD_OUT or (self.split == "train" and in_share(text_of(self.prompt), share))


def read_rows(encoder: Encoder, path: str | Path, limit: int | None = None) -> tuple[list[Row], list[str]]:
    """The usable comparisons of a file, and a sentence for every row that was left out.

    Raises GirsanovError if the file cannot be read, or none of its rows can be used.
    """
    rows, left_out = list[Row](), list[str]()
    for place, found in open_preferences(path).rows:
        if isinstance(found, GirsanovError):
            left_out.append(str(found))
            continue
        groups = rankings(found)
        wrong = None if groups else f"{place}: nothing says which item is better"
        for group in groups:
            wrong = wrong or complaint(encoder, found, group, place)
        if wrong is not None:
            left_out.append(wrong)
            continue
        for group in groups:
            known = tuple(item.score for item in group if item.score is not None)
            texts = tuple(item.text or "" for item in group)
            rows.append(Row(found.prompt, texts, known if len(known) == len(group) else None, found.split))
        if limit is not None and len(rows) >= limit:
            break
    if not rows:
        raise GirsanovError(f"{path} has no row to learn from: {left_out[0] if left_out else 'it is empty'}")
    return rows, left_out


def encoded(encoder: Encoder, rows: Sequence[Row], **more: Any) -> TextComparisons:
    """Rows as comparisons; ``more`` is batch size and seed of the source."""
    scores = [row.scores for row in rows]
    given = scores if any(s is not None for s in scores) else None
    return TextComparisons.encode(encoder, [(row.prompt, row.completions) for row in rows], given, **more)


def read_comparisons(
    encoder: Encoder, path: str | Path, *, split: str | None = None, limit: int | None = None, **more: Any
) -> tuple[TextComparisons, list[str]]:
    """The comparisons of a file, and a sentence for every row that was left out.

    Args:
        encoder: the tokenizer.
        path: what ``girsanov data`` reads.
        split: only rows of this split.
        limit: stop after so many comparisons.
        more: batch size and seed of the source.

    Raises:
        GirsanovError: a file that cannot be read, or none of whose rows can be used.
    """
    found, left_out = read_rows(encoder, path, None if split is not None else limit)
    rows = [row for row in found if split is None or row.split == split][:limit]
    if not rows:
        raise GirsanovError(f"{path} has no row to learn from: the split has none")
    return encoded(encoder, rows, **more), left_out


def complaint(encoder: Encoder, row: Preference, items: Sequence[Item], place: str) -> str | None:
    """What is wrong with the compared items of a row, or None."""
    if any(item.text is None for item in items):
        return f"{place}: a language model reads texts, and an item is a picture"
    try:
        TextComparisons.encode(encoder, [(row.prompt, [item.text or "" for item in items])], names=[place])
    except GirsanovError as error:
        return str(error)
    return None
