"""What can be wrong with a row that has the right form, each with its place.

An *error* makes a row useless (chosen equals rejected, nothing to learn from, a missing picture); a *warning* is worth
a look (the rejected item has the higher score, the same pair stands elsewhere the other way round).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from girsanov.data.pictures import INSIDE, unreadable
from girsanov.data.records import Item, Preference


@dataclass(frozen=True)
class Problem:
    """One finding: where, what, and whether the row is useless."""

    place: str
    what: str
    error: bool = True


def check_row(p: Preference, place: str, folder: Path, images: bool = True) -> Iterator[Problem]:
    """The findings of one row by itself.

    Args:
        p: the row.
        place: where it stands.
        folder: what paths of pictures are relative to.
        images: open the pictures too.
    """
    if not p.text.strip():
        yield Problem(place, "the prompt is empty")
    for k, item in enumerate(p.items, 1):
        name = ("chosen", "rejected")[k - 1] if p.pair else f"item {k}"
        if not item.content.strip():
            yield Problem(place, f"{name} is empty")
        elif images and on_disk(item) and (what := unreadable(folder / item.content)) is not None:
            yield Problem(place, f"{name}: {what}")
    kinds = {item.image is None for item in p.items}
    if len(kinds) > 1:
        yield Problem(place, "texts and pictures are compared with each other")
    contents = [(item.image is not None, item.content) for item in p.items]
    if p.pair is not None and contents[0] == contents[1]:
        yield Problem(place, "chosen equals rejected")
    elif len(set(contents)) < len(contents):
        yield Problem(place, "the same item stands twice in the row", error=len(contents) == 2)
    if any(item.rank is not None for item in p.items) and not p.ranked:
        yield Problem(place, "some items have a rank and others have none")
    if not p.pairs() and all(item.label is None and item.score is None and not item.scores for item in p.items):
        yield Problem(place, "nothing tells its items apart: no rank, score or label", error=False)
    yield from _against_scores(p, place)


def on_disk(item: Item) -> bool:
    """Whether the item is a picture in a file of its own."""
    return item.image is not None and not item.image.startswith(INSIDE)


def _against_scores(p: Preference, place: str) -> Iterator[Problem]:
    if p.ranked:
        for a, b in p.pairs():
            if a.score is not None and b.score is not None and a.score < b.score:
                what = f"the better item has the lower score ({a.score:g} against {b.score:g}): a flipped label?"
                yield Problem(place, what, error=False)
                return


@dataclass
class Seen:
    """What was read so far: repeated rows, and pairs that stand elsewhere the other way round.

    16 bytes a pair are kept, not the rows. Pictures count by their paths (``convert`` names them by their content).
    """

    rows: dict[bytes, str] = field(default_factory=dict)
    pairs: dict[bytes, str] = field(default_factory=dict)

    def add(self, p: Preference, place: str) -> list[Problem]:
        """What this row has to do with earlier ones; the first of several equal rows is not the repeated one."""
        key = _digest(p, p.items, p.ranked)
        if key in self.rows:
            return [Problem(place, f"the same as {self.rows[key]}", error=False)]
        self.rows[key] = place
        found = []
        for a, b in p.pairs():
            flipped = _digest(p, (b, a), True)
            if flipped in self.pairs:
                found.append(Problem(place, f"contradicts {self.pairs[flipped]}: a flipped label?", error=False))
            self.pairs.setdefault(_digest(p, (a, b), True), place)
        return found[:1]


def _digest(p: Preference, items: tuple[Item, ...], order: bool) -> bytes:
    """16 bytes of a row's content: prompt and items, in their order or as a set."""
    texts = [f"{'i' if item.image is not None else 't'}{' '.join(item.content.split())}" for item in items]
    parts = [" ".join(p.text.split()), *(texts if order else sorted(texts))]
    return hashlib.blake2b("\x00".join(parts).encode(), digest_size=16).digest()
