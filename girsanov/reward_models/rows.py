"""Rows of a preference file as a reward model learns from them: rankings, rated items, and their features.

A row whose items are strictly ranked (by rank, else by score) is one ranking; one with ties is taken apart into its
pairs. Rows that cannot be used are left out and told. Prompts are never split between training and test.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from girsanov.data.checks import check_row
from girsanov.data.open import open_preferences
from girsanov.data.rankings import HELD_OUT, in_share, rankings
from girsanov.data.records import Item, Preference
from girsanov.errors import GirsanovError
from girsanov.reward_models.fronts import Front, picture, requests
from girsanov.reward_models.frozen import device_here

PICTURES = 16  # read at once

Asked = tuple[str, Item]
"""A prompt and one of its items."""


@dataclass
class Rows:
    """Usable rows as they come.

    Attributes:
        folder: what paths of pictures are relative to.
        prompts, items, held_out: of every ranking its prompt, its items best first, and whether it is to test on.
        rated: items with scores by name, and whether they are to test on.
        left_out: a sentence for each row that was not used.
    """

    folder: Path
    prompts: list[str] = field(default_factory=list)
    items: list[list[Item]] = field(default_factory=list)
    held_out: list[bool] = field(default_factory=list)
    rated: list[tuple[Asked, bool]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, p: Preference, share: float) -> bool:
        """A row, as one ranking or as pairs; whether it ranks or rates anything."""
        test = p.split in HELD_OUT or (p.split == "train" and in_share(p.text, share))
        found, rated = rankings(p), [i for i in p.items if i.scores]
        for group in found:
            self.prompts.append(p.text)
            self.items.append(group)
            self.held_out.append(test)
        self.rated += [((p.text, i), test) for i in rated]
        return bool(found)

    @property
    def pictures(self) -> bool:
        """Whether pictures are compared. Raises GirsanovError if some rows have texts and others pictures."""
        every = [i for items in self.items for i in items] + [i for (_, i), _ in self.rated]
        kinds = {i.image is not None for i in every}
        if len(kinds) > 1:
            raise GirsanovError("the file compares texts in some rows and pictures in others: give two files")
        return kinds == {True}


def read_rows(path: str | Path, share: float, limit: int | None = None, front: Front | None = None) -> Rows:
    """The usable rows of a file; rows that its front cannot read are left out too.

    Raises GirsanovError if there is none.
    """
    opened = open_preferences(path)
    found = Rows(opened.folder)
    for place, row in opened.rows:
        wrong = str(row) if isinstance(row, GirsanovError) else complaint(row, place, opened.folder, front)
        if wrong is None and isinstance(row, Preference) and not found.add(row, share):
            wrong = f"{place}: nothing says which item is better"
        if wrong is not None:
            found.left_out.append(wrong)
        if limit is not None and len(found.items) >= limit:
            break
    if not found.items and not found.rated:
        first = found.left_out[0] if found.left_out else "it is empty"
        raise GirsanovError(f"{path} has no row to learn from: {first}")
    return found


def complaint(row: Preference, place: str, folder: Path, front: Front | None) -> str | None:
    """Why a row cannot be used, or None."""
    for problem in check_row(row, place, folder):
        if problem.error:
            return f"{place}: {problem.what}"
    for item in row.items:
        if front is not None and item.text is not None:
            said = front.complaint(row.text, item.text)
            if said is not None:
                return f"{place}: {said}"
    return None


@torch.no_grad()
def encoded(front: Front, asked: Sequence[Asked], folder: Path) -> Tensor:
    """What a front gives of items with their prompts, [N, *D] on the host; each distinct one is read once."""
    keys = [(prompt, item.image is not None, item.content) for prompt, item in asked]
    distinct = list(dict.fromkeys(keys))
    place = {key: i for i, key in enumerate(distinct)}
    if distinct[0][1]:
        found = torch.cat(list(seen(front, [(p, c) for p, _, c in distinct], folder)))
    else:
        found = front.texts([p for p, _, _ in distinct], [c for _, _, c in distinct]).cpu()
    return found[[place[key] for key in keys]]


def seen(front: Front, asked: Sequence[tuple[str, str]], folder: Path) -> Iterator[Tensor]:
    """Features of pictures, several of one size at once, in order."""
    for k in range(0, len(asked), PICTURES):
        part = asked[k : k + PICTURES]
        images = [picture(folder / name) for _, name in part]
        rows: list[Tensor | None] = [None] * len(part)
        for size in {tuple(x.shape) for x in images}:
            alike = [i for i, x in enumerate(images) if tuple(x.shape) == size]
            x = torch.cat([images[i] for i in alike]).to(device_here())
            for i, features in zip(alike, front.images(x, requests([part[i][0] for i in alike])).cpu(), strict=True):
                rows[i] = features
        yield torch.stack([row for row in rows if row is not None])


def packed(rows: Rows, front: Front) -> tuple[Tensor, Tensor, Tensor]:
    """Items [N, K, *D], which are there, and their scores (NaN where none), [N, K].

    An item that is not there is a copy of the best one: a network may be asked about it, and nothing is learned of it.
    """
    k = max(len(items) for items in rows.items)
    flat = [(p, i) for p, items in zip(rows.prompts, rows.items, strict=True) for i in items]
    found = encoded(front, flat, rows.folder)
    valid = torch.tensor([[j < len(items) for j in range(k)] for items in rows.items])
    first = valid.sum(1).cumsum(0) - valid.sum(1)
    place = torch.where(valid, first[:, None] + torch.arange(k), first[:, None])
    score = torch.tensor([torch.nan if i.score is None else i.score for _, i in flat])
    return found[place], valid, score[place]
