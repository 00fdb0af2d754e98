"""Comparisons, labels and demonstrations from a file of preferences (``girsanov data``), as rows of a language model.

What is taken of a row is the method's affair:

==============  ===============================================================================================
taken           rows
==============  ===============================================================================================
compared        strictly ranked items as one list, those with ties taken apart into pairs
contrasted      the best item with all the others (POVID)
judged          compared; or the items that are labelled good or bad, as they are (KTO, BCO)
demonstrated    the best item, or those labelled good, each by itself (supervised, SPIN)
==============  ===============================================================================================

A row that cannot be used (a prompt longer than the context, an empty completion, chosen equal to rejected, a score that
is no number, nothing that says which is better, labels alone for a method that compares) is left out and told by its
place; the others are kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from girsanov.data.open import open_preferences
from girsanov.data.rankings import is_held_out, rankings
from girsanov.data.records import Item, Preference, Segment
from girsanov.errors import GirsanovError
from girsanov.language.base import LanguageMethod
from girsanov.language.data import TextComparisons
from girsanov.language.preference import PreferenceMethod
from girsanov.language.selfplay import SelfPlay
from girsanov.language.tokens import Encoder, Prompt
from girsanov.preferences import ImitationLoss, PointLoss
from girsanov.preferences.pairs import ManyNegatives


@dataclass(frozen=True)
class Group:
    """Items that belong together: best first, or labelled."""

    items: Sequence[Item]
    labelled: bool = False

    @property
    def labels(self) -> tuple[bool, ...] | None:
        """Whether each item is good; None where they are best first."""
        return tuple(bool(item.label) for item in self.items) if self.labelled else None


Take = Callable[[Preference], list[Group]]
"""What is taken of a row."""


def compared(p: Preference) -> list[Group]:
    """Its ranking, or its pairs."""
    return [Group(items) for items in rankings(p)]


def contrasted(p: Preference) -> list[Group]:
    """The best item with all the others; pairs where several are the best."""
    found = rankings(p)
    best = [items[0] for items in found]
    if not found or any(item is not best[0] for item in best):
        return [Group(items) for items in found]
    return [Group([best[0], *(item for item in p.items if item is not best[0])])]


def judged(p: Preference) -> list[Group]:
    """Its ranking or pairs; without these, its labelled items."""
    labelled = [item for item in p.items if item.label is not None]
    return compared(p) or ([Group(labelled, True)] if labelled else [])


def demonstrated(p: Preference) -> list[Group]:
    """Its best items, each by itself; without a ranking, those that are labelled good."""
    best = list[Item]()
    for items in rankings(p):
        if not any(items[0] is item for item in best):
            best.append(items[0])
    lost = [item for items in rankings(p) for item in items[1:]]
    kept = [item for item in best if not any(item is other for other in lost)]
    return [Group([item]) for item in kept or [item for item in p.items if item.label]]


def reading(method: LanguageMethod) -> Take:
    """What a method takes of a row."""
    if not isinstance(method, PreferenceMethod) or method.data == "prompts":
        return judged
    if isinstance(method, SelfPlay) or isinstance(method.loss, ImitationLoss):
        return demonstrated
    if isinstance(method.loss, ManyNegatives):
        return contrasted
    return judged if isinstance(method.loss, PointLoss) else compared


@dataclass(frozen=True)
class Row:
    """What was taken of a row.

    Attributes:
        prompt: the prompt.
        completions: best first, or labelled.
        scores: of each, if all are known.
        labels: whether each is good, or None.
        segments: of each, what weighs more.
        split: which part of the data.
        test: whether it is held out.
    """

    prompt: Prompt
    completions: tuple[str, ...]
    scores: tuple[float, ...] | None = None
    labels: tuple[bool, ...] | None = None
    segments: tuple[tuple[Segment, ...], ...] = ()
    split: str = "train"
    test: bool = False


def read_rows(
    encoder: Encoder, path: str | Path, limit: int | None = None, take: Take = compared, held_out: float | None = None
) -> tuple[list[Row], list[str]]:
    """The usable rows of a file, and a sentence for every row that was left out.

    Args:
        encoder: the tokenizer.
        path: what ``girsanov data`` reads.
        limit: stop after so many.
        take: what is taken of a row to train on; of one that is held out, what ``judged`` says.
        held_out: which rows are held out: those of the splits test and validation, and this share of the prompts of
            the split train. None holds none out.

    Raises:
        GirsanovError: the file cannot be read, or none of its rows can be used.
    """
    rows, left_out = list[Row](), list[str]()
    for place, found in open_preferences(path).rows:
        if isinstance(found, GirsanovError):
            left_out.append(str(found))
            continue
        test = held_out is not None and is_held_out(found.split, found.text, held_out)
        groups = (judged if test else take)(found)
        wrong = None if groups else nothing_taken(found, place)
        for group in groups:
            wrong = wrong or complaint(encoder, found, group, place)
        if wrong is not None:
            left_out.append(wrong)
            continue
        rows += [made(found, group, test) for group in groups]
        if limit is not None and len(rows) >= limit:
            break
    if not rows or (left_out and all(row.test for row in rows)):
        raise GirsanovError(f"{path} has no row to learn from: {left_out[0] if left_out else 'it is empty'}")
    return rows, left_out


def made(p: Preference, group: Group, test: bool) -> Row:
    """A row from the items that were taken."""
    known = tuple(item.score for item in group.items if item.score is not None)
    return Row(
        p.prompt,
        tuple(item.text or "" for item in group.items),
        known if len(known) == len(group.items) else None,
        group.labels,
        tuple(item.segments for item in group.items),
        p.split,
        test,
    )


def encoded(encoder: Encoder, rows: Sequence[Row], **more: Any) -> TextComparisons:
    """Rows as comparisons; ``more`` is batch size and seed of the source."""
    scores = [row.scores for row in rows]
    return TextComparisons.encode(
        encoder,
        [(row.prompt, row.completions) for row in rows],
        scores if any(s is not None for s in scores) else None,
        labels=[row.labels for row in rows],
        segments=[row.segments for row in rows],
        **more,
    )


def read_comparisons(
    encoder: Encoder,
    path: str | Path,
    *,
    split: str | None = None,
    limit: int | None = None,
    take: Take = compared,
    **more: Any,
) -> tuple[TextComparisons, list[str]]:
    """The comparisons of a file, and a sentence for every row that was left out.

    Args:
        encoder: the tokenizer.
        path: what ``girsanov data`` reads.
        split: only rows of this split.
        limit: stop after so many comparisons.
        take: what is taken of a row.
        more: batch size and seed of the source.

    Raises:
        GirsanovError: a file that cannot be read, or none of whose rows can be used.
    """
    found, left_out = read_rows(encoder, path, limit if split is None else None, take)
    rows = [row for row in found if split is None or row.split == split][:limit]
    if not rows:
        raise GirsanovError(f"{path} has no row to learn from: the split has none")
    return encoded(encoder, rows, **more), left_out


def nothing_taken(p: Preference, place: str) -> str:
    """Why nothing was taken of a row."""
    if any(item.label is not None for item in p.items):
        return f"{place} has labels alone: kto and bco learn from these, this method from completions that are compared"
    return f"{place}: nothing says which item is better"


def complaint(encoder: Encoder, row: Preference, group: Group, place: str) -> str | None:
    """What is wrong with the items that were taken of a row, or None."""
    if any(item.text is None for item in group.items):
        return f"{place}: a language model reads texts, and an item is a picture"
    one = made(row, group, False)
    try:
        encoded(encoder, [one], names=[place])
    except GirsanovError as error:
        return str(error)
    return None
