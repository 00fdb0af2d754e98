r"""Clipped policy gradient on the sampler's Gaussian transitions: the DDPO / Flow-GRPO family as one composition.

.. math:: L = \frac1K \sum_{k=1}^K \Big\{ w_k\, E[\ell(\log\rho_k, A_k)] + \beta u_k\, E[KL(\pi(\cdot|x_k) \,\|\,
    \pi_{ref}(\cdot|x_k))] \Big\}, \qquad
    \log\rho_k = \log\frac{\pi(x_{k+1}|x_k)}{\pi_{old}(x_{k+1}|x_k)}

over the K trained steps that have a density, with ``pi = sampler.kernel(model, ...)``, ell the surrogate, w and u the
weights of policy loss and penalty. Log-ratio and KL are added up over the data dimensions alike (``surrogate.reduce``),
so beta is the same for the sum and the mean. At ``rho = 1`` the gradient is that of

.. math:: J = c\, E[r] - \beta\, KL, \qquad c = \partial A / \partial r

so the policy settles where ``beta_eff = beta / c`` would put it without normalisation: with the group's std s and G
samples a prompt ``beta_eff = beta (s + eps) G / (G - 1)`` (``advantages/base.py`` lists c). A std that shrinks as the
policy sharpens lowers ``beta_eff`` with it. Which KL is meant, and which law it leads to, is the penalty's choice.

The ratio is 1 to the bit at the first update: with one update a batch ``pi_old`` is pi itself, detached; with several,
``anchor`` scores each micro-batch before the first. What separates the sampler's kernel from the trainer's (batch
shape, precision, guidance) is logged as ``sampler_gap``; ``correct`` multiplies the advantage by that ratio, truncated.

References: Black et al. 2023, arXiv:2305.13301; Liu et al. 2025, arXiv:2505.05470; Fan et al. 2023, arXiv:2305.16381.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.advantages.base import Advantage, GroupNormalised
from girsanov.methods.advantages.robust import Clipped
from girsanov.methods.base import Chunk, State, Turn
from girsanov.methods.policy_gradient.batch import PathBatch, Scored, no_density, no_noise
from girsanov.methods.policy_gradient.credit import PlainRatio, Ratio, StepWeight, Uniform
from girsanov.methods.policy_gradient.paths import Chains, Paths
from girsanov.methods.policy_gradient.penalty import Penalty
from girsanov.methods.policy_gradient.schedules import SamplerSchedule, Unchanged
from girsanov.methods.policy_gradient.steps import AllSteps, Steps
from girsanov.methods.policy_gradient.trees import Trees
from girsanov.methods.states import KeepsStates
from girsanov.policy import Policy
from girsanov.rewards.base import Reward
from girsanov.samplers.base import Sampler
from girsanov.samplers.gddim import GDDIM
from girsanov.surrogates import Clip, Surrogate, ratio_of
from girsanov.types import Batch, Kernel, Prompts


@dataclass(frozen=True, kw_only=True)
class ClippedPG(KeepsStates):
    """Policy gradient through the density of the sampler's steps.

    Attributes:
        reward: any score; no gradient is asked of it.
        sampler, grid: of the rollout; stochastic and single-step.
        advantage: rewards to advantages.
        surrogate: clip, hinge, trust region or none.
        kl: penalty towards the reference, or None.
        ratio, weight: rescaling of the log-ratio, factor of a step's policy loss.
        steps: which of the steps that have noise are trained.
        schedule: how the sampler changes over training (a moving window, say).
        same_start: the samples of a group start from the same noise.
        correct: cap of the sampler-to-trainer ratio that the advantage is multiplied by; None leaves it out.
        paths: chains, or trees that share their beginnings.
        rollout_micro_batch: samples rolled out at a time, each lot scored while the next is rolled out; None is all.
    """

    reward: Reward
    sampler: Sampler = GDDIM(1.0)
    grid: Grid = field(default_factory=lambda: Grid.uniform(20))
    advantage: Advantage = Clipped(GroupNormalised(), 5.0)
    surrogate: Surrogate = Clip()
    kl: Penalty | None = None
    ratio: Ratio = PlainRatio()
    weight: StepWeight = Uniform()
    steps: Steps = AllSteps()
    schedule: SamplerSchedule = Unchanged()
    same_start: bool = False
    correct: float | None = None
    paths: Paths = Chains()
    rollout_micro_batch: int | None = None

    def __post_init__(self) -> None:
        sampler = self.schedule.at(self.sampler, self.grid, Turn(0, 0))
        if not sampler.stochastic or not sampler.single_step:
            raise GirsanovError(no_density(sampler))
        if self.kl is not None and self.kl.whole_path and isinstance(self.paths, Trees):
            raise GirsanovError("the path KL is defined on chains: use PerStepKL on trees")

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """One stochastic rollout, its advantages, and the reference's means if there is a penalty."""
        sampler, model = self.schedule.at(self.sampler, self.grid, turn), policy.view("current", "rollout")
        key = prompts.group if self.same_start else prompts.ids
        with torch.no_grad():
            x_T = self.begin(policy, model, self.grid, turn.noise(key), prompts.cond)
            grid, rest = self.schedule.times(sampler, self.grid), (prompts, self.reward, turn, self.rollout_micro_batch)
            path, pending = self.paths.sample(model, sampler, grid, x_T, *rest)
        if not path.trainable:
            raise GirsanovError(no_noise(sampler))
        parts = [Scored(dataclasses.replace(tr, parent=None), sampler) for tr in path.trainable]
        chosen = self.steps(len(parts), turn)
        if self.kl is None or not self.kl.whole_path:  # the other steps cost a pass of the reference for nothing
            parts, chosen = [parts[k] for k in chosen], list(range(len(chosen)))
        if self.kl is not None:  # a slow reward is at work meanwhile
            parts = [part.with_reference(policy.view("reference", "train")) for part in parts]
        asked = (self.reward, pending, self.advantage, prompts, path, [len(p.tr.x_s) for p in parts], state, turn)
        reward, mask, signals = self.paths.credit(*asked)
        parts = [part.credited(len(reward), *signal) for part, signal in zip(parts, signals, strict=True)]
        if self.kl is not None:
            parts = self.kl.charge(parts, prompts.group, turn)
        return PathBatch(reward, mask, tuple(parts[k] for k in chosen))

    @torch.no_grad()
    def anchor(self, policy: Policy, batch: Batch, state: State) -> Batch:
        """The micro-batch with the old means, from the passes that the first update will repeat."""
        assert isinstance(batch, PathBatch)
        return batch.with_old([p.kernel(policy.view("current", "train")).mean for p in batch.parts])

    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """One chunk a trained step: memory does not grow with their number."""
        assert isinstance(batch, PathBatch)
        for part in batch.parts:
            loss, metrics = self._step(part.kernel(policy.view("current", "train")), part)
            yield Chunk(loss / len(batch.parts), metrics)

    def _step(self, kernel: Kernel, part: Scored) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one step, and what to log of it."""
        tr, reduce = part.tr, self.surrogate.reduce
        old = kernel.mean.detach() if part.old is None else part.old
        divergence = kernel.kl(old, reduce) if self.surrogate.needs_divergence or self.ratio.needs_divergence else None
        seen = self.ratio(kernel.log_ratio(old, tr.x_s, reduce), divergence, kernel, tr.step)
        with torch.no_grad():
            gap = dataclasses.replace(part.sampled, mean=old).log_ratio(tr.mean, tr.x_s)
            rho = ratio_of(seen)
            trust = 1.0 if self.correct is None else ratio_of(gap).clamp(max=self.correct)
        assert part.advantage is not None and part.mask is not None
        spread = None if divergence is None else divergence.unsqueeze(1)
        term, silent = self.surrogate(seen.unsqueeze(1), part.advantage * trust, part.mask, spread)
        loss = term.mean() * self.weight(kernel, tr.step).to(term)
        metrics = {"ratio": rho.mean(), "ratio_min": rho.min(), "ratio_max": rho.max(), "clip_fraction": silent}
        metrics["sampler_gap"] = gap.abs().mean()
        if self.kl is not None and part.reference is not None:
            price, kl = self.kl.cost(kernel, tr.step, part.reference, reduce)
            loss, metrics["kl"] = loss + (price * part.mask).mean(), kl.detach().mean()
        return loss, metrics
