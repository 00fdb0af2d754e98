"""Comparisons to train on: from a file of preferences (texts or pictures), or real digits and a simulated annotator.

A row whose items are strictly ranked (by rank, else by score) is one ranking; one with ties is taken apart into its
pairs. Rows that cannot be used are left out and told. Prompts are never split between training and test.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from girsanov.data.checks import check_row
from girsanov.data.open import open_preferences
from girsanov.data.rankings import HELD_OUT, in_share, rankings
from girsanov.data.records import Item, Preference
from girsanov.errors import GirsanovError
from girsanov.noise import generator
from girsanov.reward_models.data import Comparisons, ranked
from girsanov.reward_models.scorers import PixelsConfig, ScorerConfig, TextConfig, encode_texts
from girsanov.rewards.base import Reward
from girsanov.types import Cond

DRAW = 7303


@dataclass(frozen=True)
class Source:
    """What a reward model is trained and tested on.

    Attributes:
        train, test: comparisons.
        config: a network that reads them.
        left_out: sentences about rows that were not used.
        about: where they are from, for reports.
    """

    train: Comparisons
    test: Comparisons
    config: ScorerConfig
    about: str
    left_out: tuple[str, ...] = ()


@dataclass
class Rows:
    """Usable rows as they come: prompt, items best first, scores, whether they are to test on."""

    prompts: list[str] = field(default_factory=list)
    items: list[list[Item]] = field(default_factory=list)
    held_out: list[bool] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, p: Preference, share: float) -> None:
        """A row, as one ranking or as pairs."""
        test = p.split in HELD_OUT or (p.split == "train" and in_share(p.text, share))
        for group in rankings(p):
            self.prompts.append(p.text)
            self.items.append(group)
            self.held_out.append(test)


def read_rows(path: str | Path, share: float, limit: int | None = None) -> tuple[Rows, Path]:
    """The usable rows of a file, and its folder. Raises GirsanovError if there is none."""
    opened, found = open_preferences(path), Rows()
    for place, row in opened.rows:
        if isinstance(row, GirsanovError):
            found.left_out.append(str(row))
            continue
        wrong = [p for p in check_row(row, place, opened.folder) if p.error]
        before = len(found.items)
        if not wrong:
            found.add(row, share)
        if wrong or len(found.items) == before:
            found.left_out.append(f"{place}: {wrong[0].what if wrong else 'nothing says which item is better'}")
        if limit is not None and len(found.items) >= limit:
            break
    if not found.items:
        raise GirsanovError(
            f"{path} has no row to learn from: {found.left_out[0] if found.left_out else 'it is empty'}"
        )
    return found, opened.folder


def file_source(
    path: str | Path,
    *,
    held_out: float = 0.2,
    batch_size: int = 64,
    members: int = 1,
    length: int = 256,
    size: int = 16,
    limit: int | None = None,
    seed: int = 0,
) -> Source:
    """Preferences of a file: texts as bytes, pictures as grey or coloured squares.

    Args:
        path: what ``girsanov data`` reads.
        held_out: share of prompts to test on, where the rows name no split.
        batch_size: prompts an iteration.
        members: of the ensemble.
        length: bytes of a text.
        size: side of a picture in pixels.
        limit: stop after so many comparisons.
        seed: key of the order.
    """
    rows, folder = read_rows(path, held_out, limit)
    pictures = {i.image is not None for items in rows.items for i in items}
    if len(pictures) > 1:
        raise GirsanovError(f"{path} compares texts in some rows and pictures in others: give two files")
    if pictures == {True}:
        data = packed(rows, lambda _, items: pixels([folder / i.content for i in items], size))
        config: ScorerConfig = PixelsConfig(shape=tuple(data[0].shape[2:]), members=members)
    else:
        data = packed(rows, lambda prompts, items: encode_texts(prompts, [i.content for i in items], length))
        config = TextConfig(length=length, members=members)
    items, valid, score = data
    test = torch.tensor(rows.held_out)
    if not 2 <= int(test.sum()) < len(test):
        raise GirsanovError(
            f"{int(test.sum())} of {len(test)} comparisons are to test on: change --held-out, or give more rows"
        )
    sides = [
        Comparisons(items[m], None, valid[m], score[m], min(batch_size, int(m.sum())), seed) for m in (~test, test)
    ]
    about = f"{len(test)} comparisons of {Path(path).name}, {'pictures' if pictures == {True} else 'texts'}"
    return Source(sides[0], sides[1], config, about, tuple(rows.left_out))


def packed(rows: Rows, encode: Callable[[Sequence[str], Sequence[Item]], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Items [N, K, *D], which are there, and their scores (NaN where none), [N, K]."""
    k = max(len(items) for items in rows.items)
    flat = [(p, i) for p, items in zip(rows.prompts, rows.items, strict=True) for i in items]
    encoded = encode([p for p, _ in flat], [i for _, i in flat])
    valid = torch.tensor([[j < len(items) for j in range(k)] for items in rows.items])
    shape = (len(rows.items), k)
    out = encoded.new_zeros(*shape, *encoded.shape[1:])
    out[valid] = encoded
    if not out.is_floating_point():
        out[..., 0] = torch.where(
            valid, out[..., 0], torch.ones_like(out[..., 0])
        )  # a text that is not there has a byte
    score = torch.full(shape, torch.nan)
    score[valid] = torch.tensor([torch.nan if i.score is None else i.score for _, i in flat])
    return out, valid, score


def pixels(paths: Sequence[Path], size: int) -> Tensor:
    """Pictures as [N, C, size, size] in [-1, 1]; one channel if all of them are grey."""
    from PIL import Image

    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    x = torch.stack([torch.frombuffer(bytearray(i.tobytes()), dtype=torch.uint8) for i in images])
    x = x.reshape(len(images), size, size, 3).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x[:, :1] if bool((x == x[:, :1]).all()) else x


def digits_source(
    reward: Reward,
    *,
    items: int = 2,
    n: int = 2000,
    temperature: float = 0.5,
    batch_size: int = 64,
    members: int = 1,
    seed: int = 0,
    **_: Any,
) -> Source:
    """Real digits of the same class, ranked by an annotator with a known reward; tested on digits that it has not seen.

    Args:
        reward: the annotator's taste.
        items: K, digits a ranking.
        n: rankings to train on; half as many to test.
        temperature: of the annotator, in standard deviations of the reward over the digits.
        batch_size, members, seed: as in ``file_source``.
    """
    from girsanov.recipes.digits_data import CLASSES, SHAPE, digit_prompts, load_digits

    if items < 2 or n < 4:
        raise GirsanovError("an annotator ranks two digits or more, in four rankings or more")
    digits = load_digits()
    halves = (digits.generator, digits.judge)
    scores = [reward(half.x, digit_prompts(half.labels)).detach() for half in halves]
    spread = float(scores[0].std())
    sides = []
    for side, (half, score, count) in enumerate(zip(halves, scores, (n, n // 2), strict=True)):
        g = generator((seed, DRAW, side))
        label = torch.randint(CLASSES, (count,), generator=g)
        members_of = [(half.labels == c).nonzero().flatten() for c in range(CLASSES)]
        rows = torch.stack([m[torch.randperm(len(m), generator=g)[:items]] for m in (members_of[c] for c in label)])
        cond = Cond({"label": torch.arange(CLASSES)}, label)
        data = ranked(
            half.x[rows], score[rows] / spread, temperature, cond=cond, seed=seed + side, batch_size=batch_size
        )
        sides.append(data)
    about = f"{n} rankings of {items} real digits by an annotator who likes {reward.name}"
    return Source(sides[0], sides[1], PixelsConfig(shape=SHAPE, classes=CLASSES, members=members), about)
