"""Pipelines that learn from a user's own judged pictures: read, encoded once, served in epochs, measured on held-out
pairs.

``data=FILE`` is what ``girsanov data`` reads. A method takes from it what it learns from: pairs, labels or rankings
(``girsanov/data/judged.py``). Pictures become states of the pipeline on first use and stay on disk
(``girsanov/adapters/pictures.py``); a batch reads its own. A run is judged by the share of pairs of held-out prompts
that the implicit reward of the tuned network puts in order; the reward of the settings is measured on its samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from girsanov.adapters.base import Adapter
from girsanov.adapters.pictures import PictureEncoder
from girsanov.data.judged import KINDS, Judged, usable
from girsanov.data.rankings import is_held_out, told
from girsanov.errors import GirsanovError
from girsanov.evaluation.implicit import implicit_reward
from girsanov.evaluation.intervals import share_interval
from girsanov.items import ItemPrompts
from girsanov.pairs import PairPrompts
from girsanov.prompts import Groups
from girsanov.recipes.base import Metric
from girsanov.recipes.pipeline_evaluation import PipelineEvaluator
from girsanov.train import Run
from girsanov.types import Cond, Prompts

Conditions = Callable[[Sequence[str]], Cond]
"""Prompts to the conditions of a batch, one sample each."""
ORDERED = Metric("reward", "Held-out pairs in order", "high", percent=True)


# ---- a batch


def as_pairs(rows: Sequence[Judged], x: Tensor, p: Prompts) -> Prompts:
    """States [B, 2, *D] as chosen and rejected."""
    return PairPrompts(p.cond, p.ids, p.group, p.meta, chosen=x[:, 0], rejected=x[:, 1])


def as_labels(rows: Sequence[Judged], x: Tensor, p: Prompts) -> Prompts:
    """States [B, 1, *D] with their signs."""
    sign = torch.tensor([[1.0 if row.good else -1.0] for row in rows])
    return ItemPrompts(p.cond, p.ids, p.group, p.meta, items=x, sign=sign)


def as_lists(rows: Sequence[Judged], x: Tensor, p: Prompts) -> Prompts:
    """States [B, K, *D] with their scores."""
    score = torch.tensor([row.score for row in rows], dtype=torch.float64)
    return ItemPrompts(p.cond, p.ids, p.group, p.meta, items=x, score=score)


SERVED = {"pairs": as_pairs, "labels": as_labels, "lists": as_lists}
"""How rows become a batch, by what a method learns from."""


@dataclass(frozen=True)
class JudgedPictures:
    """Judged pictures served in epochs, a pure function of the iteration; states are read from disk batch by batch.

    Attributes:
        kind: "pairs", "labels" or "lists".
        rows: N of them.
        states: paths of pictures to states of the pipeline.
        conditions: prompts to conditions.
        batch_size: rows of an iteration, over all processes.
        seed: key of the order.
    """

    kind: str
    rows: Sequence[Judged]
    states: Callable[[Sequence[Path]], Tensor]
    conditions: Conditions
    batch_size: int = 16
    seed: int = 0
    _order: Groups = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_order", Groups(len(self.rows), self.batch_size, 1, self.seed))

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, iteration: int, rank: int = 0, world_size: int = 1) -> Prompts:
        """This process's rows of an iteration; ``group`` is the number of each."""
        index, ids, _ = self._order.share(iteration, rank, world_size)
        rows = [self.rows[i] for i in index.tolist()]
        x = self.states([path for row in rows for path in row.pictures]).unflatten(0, (len(rows), -1))
        asked = Prompts(self.conditions([r.prompt for r in rows]), ids, index, tuple({"text": r.prompt} for r in rows))
        return SERVED[self.kind](rows, x, asked)


# ---- what there is to learn from


@dataclass(frozen=True)
class Learned:
    """What a run learns from.

    Attributes:
        source: of the batches.
        test: pairs of held-out prompts, maybe none.
        about: how much of what.
        left_out: a sentence for each row that cannot be used.
    """

    source: JudgedPictures
    test: Sequence[Judged]
    about: str
    left_out: Sequence[str]

    @property
    def facts(self) -> dict[str, str]:
        """What the report says of it."""
        more = "" if len(self.left_out) < 2 else f"; {len(self.left_out)} in all"
        return {"Left out": f"{self.left_out[0]}{more}"} if self.left_out else {}


def prompts_in(path: str, share: float) -> tuple[list[str], list[str]]:
    """The distinct prompts of a file of judged pictures: to train on, and held out."""
    rows = [r.row for r in usable(path)[0]]
    held = list(dict.fromkeys(r.text for r in rows if is_held_out(r.split, r.text, share)))
    return [t for t in dict.fromkeys(r.text for r in rows) if t not in set(held)], held


def learn(kind: str, config: Any, adapter: Adapter, conditions: Conditions, device: torch.device) -> Learned:
    """Reads the data of a run, encodes its pictures and holds a part out.

    Raises:
        GirsanovError: a file that cannot be read, or has nothing of this kind to train on; a method that draws its own.
    """
    if kind not in KINDS:
        raise GirsanovError(
            f"{config.method.kind} learns from samples of its own: leave data out, or take a method that learns from "
            "judged pictures, for example --method diffusion-dpo"
        )
    rated, left_out = usable(config.data)
    rows, more = KINDS[kind](rated, config.data_items)
    train = [r for r in rows if not r.held_out(config.held_out)][: config.data_limit]
    test = [r for r in KINDS["pairs"](rated, None)[0] if r.held_out(config.held_out)][: config.eval_pairs]
    states = PictureEncoder(adapter, device)
    wrong = states.prepare([p for r in [*train, *test] for p in r.pictures])
    spoilt = {r.place: wrong[p] for r in [*train, *test] for p in r.pictures if p in wrong}
    left_out = [*left_out, *more, *(f"{place}: {what}" for place, what in spoilt.items())]
    train, test = ([r for r in some if not any(p in wrong for p in r.pictures)] for some in (train, test))
    for line in told(left_out):
        tqdm.write(line)
    if not train:
        every = rows and all(r.held_out(config.held_out) for r in rows)
        why = "all of its prompts are held out, lower held_out" if every else left_out[0]
        raise GirsanovError(f"{config.data} has no {kind} to train on: {why}")
    batch = min(config.groups * config.group_size, len(train))
    source = JudgedPictures(kind, train, states, conditions, batch, config.train.seed)
    held = f", judged on {len(test)} of other prompts" if test else ""
    about = f"{len(train)} {kind} of {Path(config.data).name}{held}"
    return Learned(source, test, about, left_out)


# ---- what was learned


@dataclass(frozen=True)
class LearnedEvaluator:
    """The numbers of a pipeline, and how well it orders held-out pairs.

    Attributes:
        inner: the evaluator of every run.
        learned: where the pairs are.
    """

    inner: PipelineEvaluator
    learned: Learned

    def __call__(self, run: Run) -> dict[str, float]:
        """All numbers of the deployed model: ``reward`` is the share of pairs in order, ``measured`` the samples'."""
        names = {"reward": "measured", "reward_se": "measured_se"}
        return {names.get(k, k): v for k, v in self.inner(run).items()} | self.order(run)

    @torch.no_grad()
    def order(self, run: Run) -> dict[str, float]:
        """Share of the held-out pairs whose better picture has the higher implicit reward, ties counted half."""
        name, source = "current" if run.config.ema is None else "ema", self.learned.source
        tuned, base = run.policy.view(name, "train"), run.policy.view("reference", "train")

        def gaps(ids: Tensor) -> Tensor:
            rows = [self.learned.test[i] for i in ids.tolist()]
            items = source.states([p for r in rows for p in r.pictures]).unflatten(0, (len(rows), 2))
            cond = source.conditions([r.prompt for r in rows]).to(self.inner.device)
            s = implicit_reward(tuned, base, items.to(self.inner.device), cond, seed=self.inner.seed + int(ids[0]))
            return (s[:, 0] - s[:, 1]).cpu()

        gap = torch.cat(self.inner.spread.together(len(self.learned.test), self.inner.batch, gaps))
        right = (gap.sign() + 1) / 2
        share = share_interval(float(right.sum()), len(right))
        return {"reward": share.value, "reward_se": (share.high - share.low) / (2 * 1.959964)}

    def metrics(self) -> tuple[Metric, ...]:
        """What it measures."""
        measured = Metric("measured", f"Reward of samples ({self.inner.reward.name})")
        return (ORDERED, *(measured if m.key == "reward" else m for m in self.inner.metrics()))
