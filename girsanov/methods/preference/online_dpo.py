r"""Online Diffusion-DPO: the best and the worst sample of each prompt's own group, then Diffusion-DPO.

Every iteration samples groups from the policy, scores them, takes the two ends of each group as a pair, noises them
with one time and one noise, and descends on Diffusion-DPO's loss against the reference. It is OAIF on denoising errors
with a reward in the judge's place. On-policy pairs never leave the policy behind, and the labels are deterministic:
with a fixed reference the logit of a pair grows without bound wherever the reward's order is sure, so ``link=square``
(IPO, which stops at a margin) or a small B(t) is what bounds the drift. A reference that follows (``follow``) makes
every iteration a problem of its own, as in iterative DPO.

Reference: Guo et al. 2024, arXiv:2402.04792 (OAIF); Wallace et al. 2023, arXiv:2311.12908 (the loss).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.grids import Grid
from girsanov.methods.advantages.scoring import reward_metrics
from girsanov.methods.base import State, Turn
from girsanov.methods.online import sample_and_score
from girsanov.methods.preference.base import ErrorPreference, ItemBatch, compared, pair_metrics
from girsanov.methods.preference.groups import best_and_worst, total
from girsanov.methods.preference.noised import Noised, Seen
from girsanov.methods.preference.weights import ConstantWeight, PairWeight
from girsanov.policy import Policy
from girsanov.predictions import Prediction
from girsanov.preferences.links import Link, Logistic
from girsanov.preferences.pairs import PairLoss
from girsanov.preferences.scores import Score
from girsanov.processes import Schedule
from girsanov.rewards.base import Reward
from girsanov.samplers.base import Sampler
from girsanov.samplers.heun import Heun
from girsanov.starts import first_states
from girsanov.types import Batch, Prompts


@dataclass(frozen=True)
class OnlineBatch(ItemBatch):
    """Pairs of a rollout with their mean reward [P] and whether they say something, bool [P]."""

    reward: Tensor | None = None
    mask: Tensor | None = None

    def metrics(self) -> dict[str, Tensor | float]:
        """Mean and spread of the pairs' rewards, and the share of pairs that say nothing."""
        assert self.reward is not None and self.mask is not None
        return reward_metrics(self.reward, self.mask)


@dataclass(frozen=True, kw_only=True)
class OnlineDPO(ErrorPreference):
    """Diffusion-DPO on pairs of the policy's own samples.

    Attributes:
        reward: any score; no gradient is asked of it.
        sampler, rollout_grid: of the rollout; any solver.
        weight: B(t).
        link: what the loss does with the logit.
        follow: iterations after which the reference becomes the policy; None keeps it.
        rollout_micro_batch: samples rolled out at a time, each lot scored while the next is rolled out; None is all.
    """

    reward: Reward
    sampler: Sampler = Heun()
    rollout_grid: Grid = dataclasses.field(default_factory=lambda: Grid.uniform(10))
    weight: PairWeight = ConstantWeight()
    link: Link = Logistic()
    follow: int | None = None
    rollout_micro_batch: int | None = None

    def setup(self, policy: Policy) -> State:
        """A copy that follows, if one does."""
        if self.follow is not None:
            policy.keep_copy("old")
        return {}

    def coefficient(self, c: Schedule, prediction: Prediction, d: int) -> Tensor:
        """B(t)."""
        return self.weight(c, prediction, d)

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """One rollout, its best and worst, their draws and, with a reference that follows, its errors."""
        if self.follow is not None and turn.index and turn.index % self.follow == 0:
            policy.keep_copy("old")
        model = policy.view("current", "rollout")
        with torch.no_grad():
            x_T = first_states(model, self.rollout_grid, turn.noise(prompts.ids), prompts.cond, policy.dtype)
            path, pending = sample_and_score(
                model, self.sampler, self.rollout_grid, x_T, prompts, self.reward, turn,
                keep=(), micro_batch=self.rollout_micro_batch,
            )  # fmt: skip
        pairs = best_and_worst(total(self.reward, pending, turn), prompts.group)
        asked = prompts.take(pairs.better)
        items = torch.stack([path.x0[pairs.better], path.x0[pairs.worse]], 1)
        draws = self.noise(policy, items, asked, turn)
        if self.follow is not None:
            old = policy.view("old", "train")
            with torch.no_grad():
                draws = tuple(dataclasses.replace(d, base=d.look(old, asked.cond).error) for d in draws)
        return OnlineBatch(draws[0].t, asked.cond, draws, None, None, pairs.reward, pairs.valid)

    def rows(self, now: Seen, base: Seen | None, draw: Noised, batch: ItemBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """``f(h)`` of the pairs that say something."""
        assert isinstance(batch, OnlineBatch) and batch.mask is not None
        loss, items = PairLoss(score=Score(1.0), link=self.link), compared(now, base, draw, batch)
        rows = loss.rows(items)
        return torch.where(batch.mask, rows, torch.zeros_like(rows)), pair_metrics(loss.logits(loss.pairing(items)))
