"""Comparisons to train on: from a file of preferences (texts or pictures), or real digits and a simulated annotator."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from girsanov.errors import GirsanovError
from girsanov.noise import generator
from girsanov.reward_models.data import Comparisons, ranked
from girsanov.reward_models.fronts import Front, Plain
from girsanov.reward_models.objectives import Objective
from girsanov.reward_models.readings import Reading, usual
from girsanov.reward_models.rows import Rows, packed, read_rows
from girsanov.reward_models.scorers import PixelsConfig, ScorerConfig
from girsanov.rewards.base import Reward
from girsanov.types import Cond

DRAW = 7303


@dataclass(frozen=True)
class Source:
    """What a reward model is trained and tested on.

    Attributes:
        train, test: comparisons.
        config: a network that reads them.
        front: what made them of pictures or texts.
        about: where they are from, for reports.
        left_out: sentences about rows that were not used.
        net: a network of the configuration that is prepared, or None.
        objectives: what its heads predict, where it has several.
    """

    train: Comparisons
    test: Comparisons
    config: ScorerConfig
    front: Front
    about: str
    left_out: tuple[str, ...] = ()
    net: nn.Module | None = None
    objectives: tuple[Objective, ...] = ()


def file_source(
    path: str | Path,
    reading: Reading | None = None,
    *,
    held_out: float = 0.2,
    batch_size: int = 64,
    members: int = 1,
    length: int = 256,
    size: int = 16,
    limit: int | None = None,
    seed: int = 0,
) -> Source:
    """Preferences of a file.

    Args:
        path: what ``girsanov data`` reads.
        reading: how it is read; texts as bytes and pictures as squares by default.
        held_out: share of prompts to test on, where the rows name no split.
        batch_size: prompts an iteration.
        members: of the ensemble, by default.
        length: bytes of a text, by default.
        size: side of a picture in pixels, by default.
        limit: stop after so many comparisons.
        seed: key of the order.
    """
    rows = read_rows(path, held_out, limit, None if reading is None else reading.front)
    if not rows.items:
        raise GirsanovError(f"{path} says of no two items of one prompt which is better: give ranks or overall scores")
    if reading is not None and reading.front.reads_pictures != rows.pictures:
        way = ("pictures", "texts", "--features CLIP") if rows.pictures else ("texts", "pictures", "--model NAME")
        raise GirsanovError("{} compares {}, and this model reads {}: use {}".format(path, *way))
    reading = usual(rows, length, size, members) if reading is None else reading
    items, valid, score = packed(rows, reading.front)
    made = reading.make(rows, items, held_out, seed)
    train, test = sides(rows, (made.items, valid, score), made.cond, batch_size, seed)
    about = f"{len(rows.items)} comparisons of {Path(path).name}, {'pictures' if rows.pictures else 'texts'}"
    return Source(train, test, made.config, made.front, about, tuple(rows.left_out), made.net, made.objectives)


def sides(
    rows: Rows, data: tuple[Tensor, Tensor, Tensor], cond: Cond | None, batch_size: int, seed: int
) -> list[Comparisons]:
    """Comparisons to train on, and to test on. Raises GirsanovError if either are too few."""
    items, valid, score = data
    test = torch.tensor(rows.held_out)
    if not 2 <= int(test.sum()) < len(test):
        raise GirsanovError(
            f"{int(test.sum())} of {len(test)} comparisons are to test on: change --held-out, or give more rows"
        )
    asked = [None if cond is None else cond.take(m.nonzero().flatten()) for m in (~test, test)]
    return [
        Comparisons(items[m], c, valid[m], score[m], min(batch_size, int(m.sum())), seed)
        for m, c in zip((~test, test), asked, strict=True)
    ]


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
    made = []
    for side, (half, score, count) in enumerate(zip(halves, scores, (n, n // 2), strict=True)):
        g = generator((seed, DRAW, side))
        label = torch.randint(CLASSES, (count,), generator=g)
        members_of = [(half.labels == c).nonzero().flatten() for c in range(CLASSES)]
        rows = torch.stack([m[torch.randperm(len(m), generator=g)[:items]] for m in (members_of[c] for c in label)])
        cond = Cond({"label": torch.arange(CLASSES)}, label)
        data = ranked(
            half.x[rows], score[rows] / spread, temperature, cond=cond, seed=seed + side, batch_size=batch_size
        )
        made.append(data)
    about = f"{n} rankings of {items} real digits by an annotator who likes {reward.name}"
    config = PixelsConfig(shape=SHAPE, classes=CLASSES, members=members)
    return Source(made[0], made[1], config, Plain(), about)
