r"""D3PO: DPO on every step of two sampled chains, of which one ended better.

Denoising as a decision process whose actions are the steps: the preference between two chains of one prompt is taken
for a preference between their actions at every step k,

.. math:: L = - \frac1K \sum_k E\Big[ \log \sigma\Big( \beta \log \mathrm{clip}(\rho_k^w, 1 \pm c) - \beta \log
    \mathrm{clip}(\rho_k^l, 1 \pm c) \Big) \Big], \qquad \rho_k = \frac{\pi(x_{k+1} | x_k)}{\pi_{ref}(x_{k+1} | x_k)}

No reward model is needed where people compare; here the best and the worst of a group by any reward are the pair. At
the reference every step costs log 2. The clip silences a step that is already far enough; without it and with one step
it is DPO on the chain's density. The log-density is averaged over the latent (``reduce = "mean"``), as published.

Reference: Yang et al. 2023, arXiv:2311.13231, Eq. 13 and its code (beta 0.1, clip 0.1, 20 steps, eta 1, guidance 5).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.base import Chunk, State, Turn
from girsanov.methods.online import sample_and_score
from girsanov.methods.preference.base import pair_metrics
from girsanov.methods.preference.groups import best_and_worst, total
from girsanov.methods.preference.paths import PairedPaths, chosen_steps, clipped, log_ratios, needs_density
from girsanov.methods.states import KeepsStates
from girsanov.policy import Policy
from girsanov.precision import as_wide
from girsanov.preferences.links import Link, Logistic
from girsanov.reductions import Reduction
from girsanov.rewards.base import Reward
from girsanov.samplers.base import Sampler
from girsanov.samplers.gddim import GDDIM
from girsanov.types import Batch, Prompts


@dataclass(frozen=True, kw_only=True)
class D3PO(KeepsStates):
    """DPO on the steps of sampled chains.

    Attributes:
        reward: what ranks the samples of a prompt; no gradient is asked of it.
        sampler, grid: of the rollout; stochastic and single-step.
        beta: scale of the log-ratios.
        clip: range of the ratios.
        link: what the loss does with the logit.
        reduce: how log-ratios are added up over the data.
        rollout_micro_batch: samples rolled out at a time, each lot scored while the next is rolled out; None is all.
    """

    reward: Reward
    sampler: Sampler = GDDIM(1.0)
    grid: Grid = field(default_factory=lambda: Grid.uniform(20))
    beta: float = 0.1
    clip: float = 0.1
    link: Link = Logistic()
    reduce: Reduction = "mean"
    rollout_micro_batch: int | None = None

    def __post_init__(self) -> None:
        needs_density("D3PO", self.sampler)
        if not (self.beta > 0 and 0 < self.clip < 1):
            raise GirsanovError(f"D3PO needs beta > 0 and a clip in (0, 1), not {self.beta} and {self.clip}")

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """One rollout; the best and the worst chain of every group, with the reference's means."""
        model = policy.view("current", "rollout")
        with torch.no_grad():
            x_T = self.begin(policy, model, self.grid, turn.noise(prompts.ids), prompts.cond)
            path, pending = sample_and_score(
                model, self.sampler, self.grid, x_T, prompts, self.reward, turn, micro_batch=self.rollout_micro_batch
            )
        pairs = best_and_worst(total(self.reward, pending, turn), prompts.group)
        parts = chosen_steps(path, self.sampler, self.grid, pairs.rows)
        base = policy.view("reference", "train")
        return PairedPaths(pairs.reward, pairs.valid, pairs.gap, tuple(p.with_reference(base) for p in parts))

    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """One chunk a step."""
        assert isinstance(batch, PairedPaths)
        for part in batch.parts:
            ratio = log_ratios(part, policy.view("current", "train"), self.reduce)
            held = self.beta * clipped(ratio, self.clip)
            h = held[:, 0] - held[:, 1]
            rows = torch.where(batch.mask, self.link(h), torch.zeros_like(h))
            silent = as_wide(held != self.beta * ratio).mean()
            yield Chunk(rows.mean() / len(batch.parts), pair_metrics(h) | {"clip_fraction": silent.detach()})
