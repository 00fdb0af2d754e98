r"""Compared or labelled samples, any number a prompt: the record that the training loop carries, a source, an
annotator.

The annotator hears ``r + T g`` with Gumbel noise g: ordering by it draws rankings of Plackett and Luce's law, and two
items are Bradley and Terry's (the difference of two Gumbels is logistic). A single sample is called good with
probability ``sigma((r - c) / T)``, c the median reward.

Reference: Yellott 1977, Journal of Mathematical Psychology 15 (Gumbel noise and Plackett-Luce).
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.models import ModelLike
from girsanov.noise import Noise, generator
from girsanov.pairs import LABEL_STREAM, Pairs, simulate_pairs
from girsanov.precision import as_wide, onto
from girsanov.prompts import Groups
from girsanov.rewards.base import Reward
from girsanov.rollout import rollout
from girsanov.samplers.base import Sampler
from girsanov.starts import first_states
from girsanov.types import Cond, Prompts


@dataclass(frozen=True)
class ItemPrompts(Prompts):
    """Requests that come with K samples each, best first if they are compared: items [B, K, *D].

    Attributes:
        items: the samples.
        score: what the annotator gave them, [B, K], or None.
        sign: +1 good, -1 bad, [B, K], or None.
    """

    items: Tensor = dataclasses.field(kw_only=True)
    score: Tensor | None = dataclasses.field(default=None, kw_only=True)
    sign: Tensor | None = dataclasses.field(default=None, kw_only=True)

    def _moved(self, plain: Prompts, each: dict[str, Tensor | None]) -> "ItemPrompts":
        return ItemPrompts(plain.cond, plain.ids, plain.group, plain.meta, **each)  # type: ignore[arg-type]

    def _tensors(self) -> dict[str, Tensor | None]:
        return {"items": self.items, "score": self.score, "sign": self.sign}

    def to(self, device: torch.device | str) -> "ItemPrompts":
        """The same items on a device."""
        there = {k: None if v is None else onto(v, device) for k, v in self._tensors().items()}
        return dataclasses.replace(self, cond=self.cond.to(device), **there)  # type: ignore[arg-type]

    def take(self, index: Tensor) -> "ItemPrompts":
        """The chosen prompts."""
        rows = index.to(self.items.device)
        return self._moved(super().take(index), {k: None if v is None else v[rows] for k, v in self._tensors().items()})


@dataclass(frozen=True)
class Items:
    """N prompts with K samples each in memory, served in epochs; a pure function of the iteration.

    Attributes:
        cond: conditions of the N prompts.
        items: samples of model space, [N, K, *D], best first if ``score`` is given.
        score: of the annotator, [N, K], falling along a row.
        sign: +1 good, -1 bad, [N, K].
        batch_size: prompts of an iteration, over all processes.
        seed: key of the order.
    """

    cond: Cond
    items: Tensor
    score: Tensor | None = None
    sign: Tensor | None = None
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        n = len(self.items)
        if n == 0 or self.items.ndim < 3 or len(self.cond) != n:
            raise GirsanovError(
                f"items are samples [N, K, *D] with N conditions, not {list(self.items.shape)} with {len(self.cond)}"
            )
        for name in ("score", "sign"):
            value = getattr(self, name)
            if value is not None and value.shape != self.items.shape[:2]:
                raise GirsanovError(f"{name} must have shape {list(self.items.shape[:2])}, not {list(value.shape)}")
        if self.score is not None and not bool(self.score.isfinite().all()):
            raise GirsanovError(f"the score of row {int((~self.score.isfinite()).any(1).nonzero()[0])} is not finite")
        if self.score is not None and bool((self.score.diff(dim=1) > 0).any()):
            row = int((self.score.diff(dim=1) > 0).any(1).nonzero()[0])
            raise GirsanovError(f"the items of row {row} are not sorted by their scores, best first: sort them")
        if self.sign is not None and bool((self.sign.abs() != 1).any()):
            raise GirsanovError("labels are +1 (good) and -1 (bad)")
        object.__setattr__(self, "_order", Groups(n, self.batch_size, 1, self.seed))

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, iteration: int, rank: int = 0, world_size: int = 1) -> ItemPrompts:
        """This process's rows of an iteration."""
        order: Groups = self._order  # type: ignore[attr-defined]
        rows, ids, _ = order.share(iteration, rank, world_size)
        on = rows.to(self.items.device)
        score, sign = (None if v is None else v[on] for v in (self.score, self.sign))
        cond = self.cond.take(rows.to(self.cond.index.device))
        return ItemPrompts(cond, ids, rows, items=self.items[on], score=score, sign=sign)


@torch.no_grad()
def draw_items(
    model: ModelLike, sampler: Sampler, grid: Grid, reward: Reward, prompts: Prompts, k: int, seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """k samples of every prompt, [N, k, *D], and their rewards [N, k]."""
    device, items, scores = prompts.cond.index.device, list[Tensor](), list[Tensor]()
    for side in range(k):
        noise = Noise(seed, side, prompts.ids, LABEL_STREAM, device)
        x_T = first_states(model, grid, noise, prompts.cond, dtype)
        items.append(rollout(model, sampler, grid, x_T, prompts.cond, noise=noise, keep=()).x0)
        scores.append(as_wide(reward(model.decode(items[-1]), prompts)))
    return torch.stack(items, 1), torch.stack(scores, 1)


def ranked(cond: Cond, items: Tensor, reward: Tensor, temperature: float, batch_size: int = 64, seed: int = 0) -> Items:
    """Items [N, K, *D] ordered by an annotator of this temperature who hears rewards [N, K]."""
    _check(temperature)
    drawn = torch.rand(reward.shape, generator=generator((seed, LABEL_STREAM, 1)), dtype=torch.float64)
    gumbel = -(-drawn.clamp(1e-300, 1 - 1e-16).log()).log()
    heard = reward + temperature * onto(gumbel, reward.device)
    order = heard.argsort(dim=1, descending=True)
    pick = order.reshape(*order.shape, *[1] * (items.ndim - 2)).expand_as(items)
    return Items(cond, items.gather(1, pick), heard.gather(1, order), None, batch_size, seed)


def labelled(
    cond: Cond, items: Tensor, reward: Tensor, temperature: float, batch_size: int = 64, seed: int = 0
) -> Items:
    """Items [N, K, *D] of rewards [N, K] as N K single samples, called good or bad."""
    _check(temperature)
    n, k = reward.shape
    gap = (reward - reward.median()).flatten()
    u = onto(torch.rand(n * k, generator=generator((seed, LABEL_STREAM, 2)), dtype=torch.float64), gap.device)
    chance = torch.sigmoid(gap / temperature) if temperature > 0 else as_wide(gap >= 0)
    sign = torch.where(u < chance, 1.0, -1.0).to(items.dtype).unsqueeze(1)
    every = cond.take(torch.arange(n, device=cond.index.device).repeat_interleave(k))
    return Items(every, items.flatten(0, 1).unsqueeze(1), None, sign, batch_size, seed)


def _check(temperature: float) -> None:
    if temperature < 0:
        raise GirsanovError(f"an annotator's temperature must be at least 0, not {temperature}")


def simulate(
    data: str, model: ModelLike, sampler: Sampler, grid: Grid, reward: Reward, prompts: Prompts, *,
    bt_temperature: float = 1.0, batch_size: int = 64, seed: int = 0, size: int = 4,
    dtype: torch.dtype = torch.float32,
) -> Pairs | Items:  # fmt: skip
    """What an offline method learns from, made by a model and judged by an annotator who follows a reward.

    Args:
        data: "pairs", "labels" or "lists".
        model: what samples (the reference view).
        sampler, grid: any solver and its times.
        reward: the annotator's taste.
        prompts: one request a pair, label or list.
        bt_temperature: T; 0 never errs.
        batch_size: of the source.
        seed: key of noise and labels.
        size: samples of a list.
        dtype: of the samples.

    Raises:
        GirsanovError: negative temperature.
    """
    settings = {"batch_size": batch_size, "seed": seed}
    if data == "pairs":
        taste = {"bt_temperature": bt_temperature, "dtype": dtype}
        return simulate_pairs(model, sampler, grid, reward, prompts, **taste, **settings)  # type: ignore[arg-type]
    k, make = (1, labelled) if data == "labels" else (size, ranked)
    items, scores = draw_items(model, sampler, grid, reward, prompts, k, seed, dtype)
    return make(prompts.cond, items, scores, bt_temperature, **settings)
