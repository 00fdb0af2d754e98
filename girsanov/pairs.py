r"""Preference pairs: a record that the training loop carries, a data source, and pairs from a simulated annotator.

The annotator is Bradley and Terry's: of two images it prefers the first with probability ``sigma((r_1 - r_2) / T)``.

Reference: Bradley & Terry 1952, Biometrika 39.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.models import ModelLike
from girsanov.noise import Noise, generator
from girsanov.precision import as_wide, onto
from girsanov.prompts import Groups
from girsanov.rewards.base import Reward
from girsanov.rollout import rollout
from girsanov.samplers.base import Sampler
from girsanov.starts import first_states
from girsanov.types import Cond, Prompts

LABEL_STREAM = 7201  # noise of the annotator


@dataclass(frozen=True)
class PairPrompts(Prompts):
    """Requests that come with their answer: the preferred and the other sample of each, [B, *D]."""

    chosen: Tensor = dataclasses.field(kw_only=True)
    rejected: Tensor = dataclasses.field(kw_only=True)

    def to(self, device: torch.device | str) -> "PairPrompts":
        """The same pairs on a device."""
        chosen, rejected = self.chosen.to(device), self.rejected.to(device)
        return dataclasses.replace(self, cond=self.cond.to(device), chosen=chosen, rejected=rejected)

    def take(self, index: Tensor) -> "PairPrompts":
        """The chosen pairs."""
        plain, rows = super().take(index), index.to(self.chosen.device)
        return PairPrompts(
            plain.cond, plain.ids, plain.group, plain.meta, chosen=self.chosen[rows], rejected=self.rejected[rows]
        )


@dataclass(frozen=True)
class Pairs:
    """N pairs in memory, served in epochs; a pure function of the iteration.

    Attributes:
        cond: conditions of the N pairs.
        chosen, rejected: samples of model space (latents, not images), [N, *D].
        batch_size: pairs of an iteration, over all processes.
        seed: key of the order.
    """

    cond: Cond
    chosen: Tensor
    rejected: Tensor
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        n = len(self.chosen)
        if self.chosen.shape != self.rejected.shape or len(self.cond) != n or n == 0:
            raise GirsanovError(
                f"pairs need as many conditions, chosen and rejected samples of one shape, not {len(self.cond)}, "
                f"{list(self.chosen.shape)} and {list(self.rejected.shape)}"
            )
        same = (self.chosen == self.rejected).flatten(1).all(1)
        if bool(same.any()):
            row = int(same.nonzero()[0])
            raise GirsanovError(f"chosen equals rejected in {int(same.sum())} pairs (row {row} first): leave them out")
        object.__setattr__(self, "_order", Groups(n, self.batch_size, 1, self.seed))

    def __len__(self) -> int:
        return len(self.chosen)

    def batch(self, iteration: int, rank: int = 0, world_size: int = 1) -> PairPrompts:
        """This process's pairs of an iteration; ``group`` is the row of each pair."""
        order: Groups = self._order  # type: ignore[attr-defined]
        rows, ids, _ = order.share(iteration, rank, world_size)
        on = rows.to(self.chosen.device)
        cond = self.cond.take(rows.to(self.cond.index.device))
        return PairPrompts(cond, ids, rows, chosen=self.chosen[on], rejected=self.rejected[on])


@torch.no_grad()
def simulate_pairs(
    model: ModelLike,
    sampler: Sampler,
    grid: Grid,
    reward: Reward,
    prompts: Prompts,
    *,
    bt_temperature: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Pairs:
    """Samples two images for every prompt and lets a Bradley-Terry annotator with this reward choose.

    Args:
        model: what samples (the reference view).
        sampler, grid: any solver and its times.
        reward: the annotator's taste.
        prompts: one request a pair.
        bt_temperature: T; 0 always prefers the better one.
        batch_size: of the source that is returned.
        seed: key of noise and labels.
        dtype: of the samples.

    Raises:
        GirsanovError: negative temperature.
    """
    if bt_temperature < 0:
        raise GirsanovError(f"an annotator's temperature must be at least 0, not {bt_temperature}")
    device = prompts.cond.index.device
    images, scores = list[Tensor](), list[Tensor]()
    for side in (0, 1):
        noise = Noise(seed, side, prompts.ids, LABEL_STREAM, device)
        x_T = first_states(model, grid, noise, prompts.cond, dtype)
        x0 = rollout(model, sampler, grid, x_T, prompts.cond, noise=noise, keep=()).x0
        images, scores = [*images, x0], [*scores, as_wide(reward(model.decode(x0), prompts))]
    gap = scores[0] - scores[1]
    u = onto(torch.rand(len(gap), generator=generator((seed, LABEL_STREAM)), dtype=torch.float64), gap.device)
    odds = torch.sigmoid(gap / bt_temperature) if bt_temperature > 0 else as_wide(gap > 0)
    first = (u < odds).reshape(-1, *[1] * (images[0].ndim - 1))
    chosen, rejected = torch.where(first, images[0], images[1]), torch.where(first, images[1], images[0])
    return Pairs(prompts.cond, chosen, rejected, batch_size, seed)
