r"""PRDP: regress the difference of two chains' log-ratios on the difference of their rewards.

For two chains of one prompt that start at the same noise,

.. math:: L = E\Big[ \big( \beta (S^1 - S^2) - (r^1 - r^2) \big)^2 \Big], \qquad
    S = \sum_k \log \frac{\pi(x_{k+1} | x_k)}{\pi_{ref}(x_{k+1} | x_k)}

The optimum of ``E r - beta KL`` over all laws of chains has ``beta S = r - V(x_T)``: the loss is 0 there, for *every*
pair that shares x_T, and only there. (Chains that start elsewhere differ by V(x_T) too, unless the sampler forgets its
start.) Steps are Gaussians of a given std, which hold that optimum exactly when the value is linear in the state, as
for a linear reward; else a residual is left that shrinks slowly with the steps. It is the only member here with that
minimum.

*Clipping.* The log-ratio of a step may not move further than eps from where it was when the batch was collected:
``S_clip = sum_k [old_k + clip(s_k - old_k, +-eps)]``, and the loss is the larger of the two squares, as in PPO. At the
first update both are the same.

*Memory.* ``grad (beta S - ..)^2`` needs the sum before the gradient of any step: a pass without a graph finds it, then
each step is a chunk of its own whose gradient is its share, so memory does not grow with their number.

Reference: Deng et al. 2024, arXiv:2402.08714, Eqs. 9 and 12.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.base import Chunk, State, Turn
from girsanov.methods.online import sample_and_score
from girsanov.methods.preference.groups import neighbours, total
from girsanov.methods.preference.paths import PairedPaths, chosen_steps, log_ratios, needs_density
from girsanov.methods.states import KeepsStates
from girsanov.policy import Policy
from girsanov.precision import as_wide
from girsanov.rewards.base import Reward
from girsanov.samplers.base import Sampler
from girsanov.samplers.gddim import GDDIM
from girsanov.types import Batch, Prompts


@dataclass(frozen=True, kw_only=True)
class PRDP(KeepsStates):
    """Proximal reward difference prediction.

    Attributes:
        reward: any score; no gradient is asked of it.
        sampler, grid: of the rollout; stochastic and single-step.
        beta: weight of the KL over chains.
        clip: how far the log-ratio of a step may move from where it was; None does not clip.
        same_start: the samples of a group start from the same noise.
        rollout_micro_batch: samples rolled out at a time, each lot scored while the next is rolled out; None is all.
    """

    reward: Reward
    sampler: Sampler = GDDIM(1.0)
    grid: Grid = field(default_factory=lambda: Grid.uniform(20))
    beta: float = 1.0
    clip: float | None = 1e-2
    same_start: bool = True
    rollout_micro_batch: int | None = None

    def __post_init__(self) -> None:
        needs_density("PRDP", self.sampler)
        if not self.beta > 0 or (self.clip is not None and not self.clip > 0):
            raise GirsanovError(f"beta and clip of PRDP must be positive, not {self.beta} and {self.clip}")

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """One rollout; neighbours of every group, with the reference's means and the log-ratios as they are."""
        model, key = policy.view("current", "rollout"), prompts.group if self.same_start else prompts.ids
        with torch.no_grad():
            x_T = self.begin(policy, model, self.grid, turn.noise(key), prompts.cond)
            path, pending = sample_and_score(
                model, self.sampler, self.grid, x_T, prompts, self.reward, turn, micro_batch=self.rollout_micro_batch
            )
        pairs = neighbours(total(self.reward, pending, turn), prompts.group)
        base = policy.view("reference", "train")
        parts = [p.with_reference(base) for p in chosen_steps(path, self.sampler, self.grid, pairs.rows)]
        known = pairs.reward.isfinite()
        return self.anchor(policy, PairedPaths(pairs.reward, known, pairs.gap, tuple(parts)), state)

    @torch.no_grad()
    def anchor(self, policy: Policy, batch: Batch, state: State) -> Batch:
        """The log-ratios of all steps before the first update."""
        assert isinstance(batch, PairedPaths)
        model = policy.view("current", "train")
        return dataclasses.replace(batch, prior=tuple(log_ratios(p, model, "sum") for p in batch.parts))

    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """One chunk a step; the chunks sum to the loss and their gradients to its gradient."""
        assert isinstance(batch, PairedPaths) and batch.prior is not None
        model, k = policy.view("current", "train"), len(batch.parts)
        with torch.no_grad():
            seen = [log_ratios(part, model, "sum") for part in batch.parts]
        plain, held = (self._residual(found, batch) for found in (seen, self._hold(seen, batch)))
        worse = held.square() > plain.square()
        error = torch.where(worse, held, plain)
        for part, before in zip(batch.parts, batch.prior, strict=True):
            ratio = log_ratios(part, model, "sum")
            live = torch.where(worse.unsqueeze(1), self._near(ratio, before), ratio)
            moved = _difference(live)
            rows = error.square() / k + 2 * self.beta * error * (moved - moved.detach())
            loss = torch.where(batch.mask, rows, torch.zeros_like(rows)).mean()
            yield Chunk(loss, {"residual": error.abs().mean(), "clip_fraction": as_wide(worse).mean()})

    def _residual(self, ratios: list[Tensor], batch: PairedPaths) -> Tensor:
        """``beta (S^1 - S^2) - (r^1 - r^2)`` [P]."""
        return self.beta * torch.stack([_difference(r) for r in ratios]).sum(0) - batch.gap

    def _near(self, ratio: Tensor, before: Tensor) -> Tensor:
        """A step's log-ratios held within +-clip of what they were."""
        return ratio if self.clip is None else before + (ratio - before).clamp(-self.clip, self.clip)

    def _hold(self, seen: list[Tensor], batch: PairedPaths) -> list[Tensor]:
        assert batch.prior is not None
        return [self._near(s, before) for s, before in zip(seen, batch.prior, strict=True)]


def _difference(ratio: Tensor) -> Tensor:
    return ratio[:, 0] - ratio[:, 1]
