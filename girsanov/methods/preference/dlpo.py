r"""DLPO: policy gradient on a speech diffusion model with its own denoising loss as a penalty.

.. math:: L = - \frac1K \sum_k E\Big[ sg\big( A - b\, \ell_k \big) \log \pi(x_{k+1} | x_k) \Big], \qquad
    \ell_k = \tfrac1d \big| \tilde\epsilon_k - \epsilon_\theta(x_k) \big|^2, \quad
    \tilde\epsilon_k = \frac{x_k - \alpha_k x_0}{\sigma_k}

``x_0`` is where the chain ended, so ``\tilde\epsilon`` is the noise that the state would hold if that sample had been
noised to it: chains whose states a denoiser of their own end could not read are discouraged. The survey's Eqs. 33 and
34 have signs that disagree; this is the one that its text describes, a reward lowered by the loss. With b = 0 it is the
score function of ``ddpo-sf``. A is the advantage (the paper takes ``alpha r`` itself; any baseline leaves the mean
gradient as it is).

Reference: Chen et al. 2024, arXiv:2405.14632, Eq. 8.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.advantages.base import Advantage, LeaveOneOut
from girsanov.methods.advantages.scoring import judge, reward_metrics
from girsanov.methods.base import Chunk, State, Turn
from girsanov.methods.online import sample_and_score
from girsanov.methods.policy_gradient.batch import Scored
from girsanov.methods.preference.paths import needs_density
from girsanov.methods.states import KeepsStates
from girsanov.policy import Policy
from girsanov.predictions import combine, convert
from girsanov.reductions import Reduction, square_distance
from girsanov.rewards.base import Reward
from girsanov.samplers.base import Sampler
from girsanov.samplers.gddim import GDDIM
from girsanov.surrogates import ScoreFunction
from girsanov.types import Batch, Kernel, Prompts


@dataclass(frozen=True)
class EndedChains(Batch):
    """Rewards, advantages and masks [B], where the chains ended [B, *D], and their trained steps."""

    reward: Tensor
    advantage: Tensor
    mask: Tensor
    x0: Tensor
    parts: tuple[Scored, ...]

    def metrics(self) -> dict[str, Tensor | float]:
        """Mean and spread of the reward, and the share of samples without a signal."""
        return reward_metrics(self.reward, self.mask)


@dataclass(frozen=True, kw_only=True)
class DLPO(KeepsStates):
    """Score function with the diffusion loss in the reward.

    Attributes:
        reward: any score; no gradient is asked of it.
        sampler, grid: of the rollout; stochastic and single-step.
        advantage: rewards to advantages.
        b: weight of the diffusion loss.
        reduce: how log-probs are added up over the data.
        rollout_micro_batch: samples rolled out at a time, each lot scored while the next is rolled out; None is all.
    """

    reward: Reward
    sampler: Sampler = GDDIM(1.0)
    grid: Grid = field(default_factory=lambda: Grid.uniform(20))
    advantage: Advantage = LeaveOneOut()
    b: float = 1.0
    reduce: Reduction = "mean"
    rollout_micro_batch: int | None = None

    def __post_init__(self) -> None:
        needs_density("DLPO", self.sampler)
        if self.b < 0:
            raise GirsanovError(f"b weighs the diffusion loss and must be at least 0, not {self.b}")

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """One rollout and its advantages."""
        model = policy.view("current", "rollout")
        with torch.no_grad():
            x_T = self.begin(policy, model, self.grid, turn.noise(prompts.ids), prompts.cond)
            path, pending = sample_and_score(
                model, self.sampler, self.grid, x_T, prompts, self.reward, turn, micro_batch=self.rollout_micro_batch
            )
        if not path.trainable:
            raise GirsanovError(f"no step draws noise under {type(self.sampler).__name__}: take more steps")
        reward, advantage, mask = judge(self.reward, pending, self.advantage, prompts, state, turn)
        return EndedChains(reward, advantage, mask, path.x0, tuple(Scored(tr, self.sampler) for tr in path.trainable))

    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """One chunk a step."""
        assert isinstance(batch, EndedChains)
        surrogate = ScoreFunction(self.reduce)
        for part in batch.parts:
            kernel = part.kernel(policy.view("current", "train"))
            ratio = kernel.log_ratio(kernel.mean.detach(), part.tr.x_s, self.reduce)
            cost = denoising_loss(kernel, batch.x0)
            signal = batch.advantage.to(ratio) - self.b * cost.to(ratio)
            terms, _ = surrogate(ratio.unsqueeze(1), signal, batch.mask)
            yield Chunk(terms.mean() / len(batch.parts), {"diffusion_loss": cost.mean()})


@torch.no_grad()
def denoising_loss(kernel: Kernel, x0: Tensor) -> Tensor:
    """Mean squared error [B] of a step's noise prediction, given where the chain ended."""
    if kernel.raw is None:
        raise GirsanovError("DLPO reads the prediction: use a sampler of one stage, for example GDDIM(eta=1.0)")
    x, p, c, kind = kernel.raw
    return square_distance(convert(p, x, c, kind, "eps"), combine(x, x0, 1 / c.sigma, -c.alpha / c.sigma), "mean")
