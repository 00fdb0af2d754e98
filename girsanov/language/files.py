"""Comparisons from a file of preferences (``girsanov data``), as rows of a language model.

Strictly ranked rows stay whole, those with ties are taken apart into pairs. A row that cannot be used (a prompt longer
than the context, an empty completion, chosen equal to rejected, nothing that says which is better) is left out and told
by its place; the others are kept.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from girsanov.data.open import open_preferences
from girsanov.data.records import Item, Preference
from girsanov.errors import GirsanovError
from girsanov.language.data import TextComparisons
from girsanov.language.tokens import Encoder
from girsanov.reward_models.sources import rankings


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
    rows, scores, left_out = list[tuple[Any, list[str]]](), list[Sequence[float] | None](), list[str]()
    for place, found in open_preferences(path).rows:
        if isinstance(found, GirsanovError):
            left_out.append(str(found))
            continue
        if split is not None and found.split != split:
            continue
        groups = rankings(found)
        wrong = None if groups else "nothing says which item is better"
        for group in groups:
            wrong = wrong or complaint(encoder, found, group)
        if wrong is not None:
            left_out.append(wrong if wrong.startswith(place) else f"{place}: {wrong}")
            continue
        for group in groups:
            rows.append((found.prompt, [item.text or "" for item in group]))
            known = [item.score for item in group if item.score is not None]
            scores.append(known if len(known) == len(group) else None)
        if limit is not None and len(rows) >= limit:
            break
    if not rows:
        raise GirsanovError(f"{path} has no row to learn from: {left_out[0] if left_out else 'the split has none'}")
    given = scores if any(s is not None for s in scores) else None
    return TextComparisons.encode(encoder, rows, given, **more), left_out


def complaint(encoder: Encoder, row: Preference, items: Sequence[Item]) -> str | None:
    """What is wrong with the compared items of a row, or None."""
    if any(item.text is None for item in items):
        return "a language model reads texts, and an item is a picture"
    try:
        TextComparisons.encode(encoder, [(row.prompt, [item.text or "" for item in items])], names=["the row"])
    except GirsanovError as error:
        return str(error)
    return None
