"""Pictures that people judged, as what a preference method learns from: pairs, labels or rankings.

===========  ===========================================================================================
pairs        every better picture of a row with every worse one, by rank, else by score
labels       every picture once a prompt: good if its row says so, or if it was ever better than another
lists        K pictures of a row in strict order, best first, with their scores
===========  ===========================================================================================

"Ever better" is the rule of Diffusion-KTO's own data. Lists must have one length to be a batch: K is the most frequent
one, or what is asked for; a longer ranking keeps its best, its worst and what lies evenly between, a shorter one is
left out. Scores stand for the annotator's in all rows or in none: where one row has none, or scores against its ranks,
places do (K - 1, ..., 0).

A row that cannot be used is left out and told with its place. The pictures themselves are not opened here.

Reference: Li et al. 2024, arXiv:2404.04465, and its code (labels from pairs).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from girsanov.data.checks import check_row
from girsanov.data.open import open_preferences
from girsanov.data.pictures import INSIDE
from girsanov.data.rankings import is_held_out, rankings
from girsanov.data.records import Item, Preference
from girsanov.errors import GirsanovError


@dataclass(frozen=True)
class Judged:
    """One prompt with K pictures.

    Attributes:
        prompt: what was asked for.
        pictures: paths, best first if they are compared.
        place: where it stands, for messages.
        split: of the data.
        score: K scores, falling, or nothing.
        good: whether the picture is good, for single ones.
    """

    prompt: str
    pictures: tuple[Path, ...]
    place: str
    split: str = "train"
    score: tuple[float, ...] = ()
    good: bool | None = None

    def held_out(self, share: float) -> bool:
        """Whether it is to test on."""
        return is_held_out(self.split, self.prompt, share)


@dataclass(frozen=True)
class Rated:
    """A usable row: its place, the row, the folder of its pictures."""

    place: str
    row: Preference
    folder: Path

    def judged(self, items: Sequence[Item], score: tuple[float, ...] = (), good: bool | None = None) -> Judged:
        """Some of its items."""
        paths = tuple(self.folder / item.content for item in items)
        return Judged(self.row.text, paths, self.place, self.row.split, score, good)


def usable(path: str | Path) -> tuple[list[Rated], list[str]]:
    """The rows of pictures of a file, and a sentence for every row that was left out.

    Raises GirsanovError if the file cannot be read, or has no such row.
    """
    opened = open_preferences(path)
    found, left_out = list[Rated](), list[str]()
    for place, row in opened.rows:
        if isinstance(row, GirsanovError):
            left_out.append(str(row))
            continue
        wrong = next((p.what for p in check_row(row, place, opened.folder, images=False) if p.error), None)
        wrong = wrong or unfit(row, path)
        if wrong is None:
            found.append(Rated(place, row, opened.folder))
        else:
            left_out.append(f"{place}: {wrong}")
    if not found:
        raise GirsanovError(f"{path} has no row to learn from: {left_out[0]}")
    return found, left_out


def unfit(row: Preference, path: str | Path) -> str | None:
    """Why a row's items are no pictures in files of their own, or None."""
    if any(item.image is None for item in row.items):
        return "a pipeline learns from pictures, and an item is a text"
    if any((item.image or "").startswith(INSIDE) for item in row.items):
        return f"its pictures stand inside the table: write them with girsanov data convert {path} --out NAME.jsonl"
    return None


def pairs(rated: Sequence[Rated], size: int | None) -> tuple[list[Judged], list[str]]:
    """Better and worse."""
    found, left_out = list[Judged](), list[str]()
    for r in rated:
        some = r.row.pairs()
        found += [r.judged(pair) for pair in some]
        if not some:
            left_out.append(f"{r.place}: nothing says which picture is better")
    return found, left_out


def labels(rated: Sequence[Rated], size: int | None) -> tuple[list[Judged], list[str]]:
    """Good or bad, each picture of a prompt once."""
    found, left_out = dict[tuple[str, Path], Judged](), list[str]()
    for r in rated:
        signs = signs_of(r.row)
        if not signs:
            left_out.append(f"{r.place}: nothing says which picture is good")
        for item, good in signs:
            one = r.judged([item], good=good)
            key = (one.prompt, one.pictures[0])
            before = found.setdefault(key, one)
            found[key] = replace(before, good=bool(before.good) or good)
    return list(found.values()), left_out


def signs_of(row: Preference) -> list[tuple[Item, bool]]:
    """The items that a row calls good or bad."""
    if any(item.label is not None for item in row.items):
        return [(item, item.label) for item in row.items if item.label is not None]
    compared = row.pairs()
    better, every = {id(a) for a, _ in compared}, {id(i): i for pair in compared for i in pair}
    return [(item, key in better) for key, item in every.items()]


def lists(rated: Sequence[Rated], size: int | None) -> tuple[list[Judged], list[str]]:
    """Rankings of one length."""
    found = [(r, group) for r in rated for group in rankings(r.row)]
    left_out = [f"{r.place}: nothing says which picture is better" for r in rated if not rankings(r.row)]
    if not found:
        return [], left_out
    k = size or Counter(len(group) for _, group in found).most_common(1)[0][0]
    left_out += [f"{r.place}: ranks {len(g)} pictures, and lists here have {k}" for r, g in found if len(g) < k]
    whole = [(r, [g[round(i * (len(g) - 1) / (k - 1))] for i in range(k)]) for r, g in found if len(g) >= k]
    known = [tuple(item.score for item in g if item.score is not None) for _, g in whole]
    told = all(len(s) == k and all(a >= b for a, b in zip(s, s[1:], strict=False)) for s in known)
    places = tuple(float(k - 1 - i) for i in range(k))
    return [r.judged(g, s if told else places) for (r, g), s in zip(whole, known, strict=True)], left_out


Reading = Callable[[Sequence[Rated], int | None], tuple[list[Judged], list[str]]]
KINDS: dict[str, Reading] = {"pairs": pairs, "labels": labels, "lists": lists}
"""Rows, and K of lists (the most frequent number if None), to what a method that learns from this kind reads, and a
sentence for every row that has nothing of it."""
