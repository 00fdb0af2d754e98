r"""What preference methods on denoising errors share: items are noised, looked at, and compared.

An item's denoising error stands for its log-prob, ``log pi(x) = -(B(t) / 2) e_theta(x, t)`` up to what cancels, so any
loss of ``girsanov.preferences`` reads it: the policy's errors and the reference's make a ``Compared``. A member gives
``rows``, one number a prompt and draw. Offline members never touch a sampler.

Reference: Wallace et al. 2023, arXiv:2311.12908 (the errors as log-probs).
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.items import ItemPrompts
from girsanov.methods.base import Chunk, Method, State, Turn
from girsanov.methods.forward.times import Times, UniformTimes
from girsanov.methods.preference.noised import Noised, Seen
from girsanov.pairs import PairPrompts
from girsanov.policy import Policy, Use
from girsanov.precision import as_wide
from girsanov.predictions import Prediction
from girsanov.preferences.records import Compared
from girsanov.processes import Schedule
from girsanov.types import Batch, Cond, Prompts

RENOISE = 3  # noise stream of the draws
SOURCES = {
    "pairs": "pairs: give a Pairs source, for example simulate_pairs(...)",
    "labels": "labelled samples: give Items(..., sign=...), for example labelled(...)",
    "lists": "rankings: give Items(..., score=...), for example ranked(...)",
}


@dataclass(frozen=True)
class ItemBatch(Batch):
    """Times [B] of the first draw, conditions, the draws, and what is known of the items, [B, K]."""

    first: Tensor
    cond: Cond
    draws: tuple[Noised, ...]
    score: Tensor | None = None
    sign: Tensor | None = None


def plain(c: Schedule, prediction: Prediction, d: int) -> Tensor:
    """``B = 2 / d``: log-probs are minus the mean errors."""
    return torch.full_like(c.alpha, 2.0 / d)


@dataclass(frozen=True, kw_only=True)
class ErrorPreference(Method):
    """A loss of the denoising errors of compared items.

    Attributes:
        times: at which times items are noised.
        draws: how often each prompt's items are noised.
        grid: the times that ``GridTimes`` draws from.
    """

    times: Times = UniformTimes()
    draws: int = 1
    grid: Grid = field(default_factory=lambda: Grid.uniform(1000))

    guided: ClassVar[tuple[Use, ...]] = ("rollout",)
    compares: ClassVar[bool] = True
    """Whether the reference is asked too."""

    @abstractmethod
    def rows(self, now: Seen, base: Seen | None, draw: Noised, batch: ItemBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of every prompt [B] at a draw, and what to log."""

    def coefficient(self, c: Schedule, prediction: Prediction, d: int) -> Tensor:
        """B(t) for errors summed over d dimensions."""
        return plain(c, prediction, d)

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """Noises every prompt's items with a time and a noise of its own. Raises GirsanovError on other data."""
        items, score, sign = self.read(prompts)
        batch = self.noise(policy, items.to(policy.device, policy.dtype), prompts, turn)
        return ItemBatch(batch[0].t, prompts.cond, batch, score, sign)

    def noise(self, policy: Policy, items: Tensor, prompts: Prompts, turn: Turn) -> tuple[Noised, ...]:
        """The draws of items [B, K, *D]."""
        source, n = turn.noise(prompts.ids, RENOISE), self.draws
        laws = [(self.times, k, n, self.grid) for k in range(n)]
        return tuple(Noised.of(policy.model, items, source, law, self.coefficient) for law in laws)

    def read(self, prompts: Prompts) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Items [B, K, *D], scores and signs [B, K] of what was handed in."""
        if isinstance(prompts, PairPrompts) and self.data != "labels":
            return torch.stack([prompts.chosen, prompts.rejected], 1), None, None
        wanted = {"labels": "sign", "lists": "score"}.get(self.data)
        if not isinstance(prompts, ItemPrompts) or wanted is None or getattr(prompts, wanted) is None:
            raise GirsanovError(f"{type(self).__name__} learns from {SOURCES[self.data]}")
        return prompts.items, prompts.score, prompts.sign

    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """One chunk a draw."""
        assert isinstance(batch, ItemBatch)
        for draw in batch.draws:
            base = None
            if self.compares and draw.base is None:
                with torch.no_grad():
                    base = draw.look(policy.view("reference", "train"), batch.cond)
            now = draw.look(policy.view("current", "train"), batch.cond)
            rows, metrics = self.rows(now, base, draw, batch)
            yield Chunk(rows.mean() / len(batch.draws), dict(metrics))


def compared(now: Seen, base: Seen | None, draw: Noised, batch: ItemBatch) -> Compared:
    """The errors as log-probs, ``-(B/2) e``."""
    half = -0.5 * draw.weight.to(now.error).unsqueeze(1)
    known = base.error if base is not None else draw.base
    z = None if draw.baseline is None else draw.baseline[0]
    ref = None if known is None else half * known
    return Compared(half * now.error, ref, score=batch.score, sign=batch.sign, baseline=z)


def pair_metrics(h: Tensor) -> dict[str, Tensor]:
    """Accuracy (a tie, to rounding, counts half) and mean of logits."""
    h = torch.where(h.detach().abs() < 1e-9, torch.zeros_like(h), h.detach())
    return {"accuracy": as_wide((h.sign() + 1) / 2).mean(), "logit": h.mean()}
