r"""What forward-process methods share: sample with any solver, score, re-noise the samples, and regress.

For samples x_0 of the behaviour policy and draws ``x_t = alpha x_0 + sigma eps``, the target velocity is ``u = d_alpha
x_0 + d_sigma eps``. One identity is behind all of them: with A the (centred) reward,

.. math:: E[A\, (u - v)\,|\,x_t] = Cov(A, u\,|\,x_t)

is the direction in which the velocity improves the reward (``v^* - v_ref = Cov(r, u | x_t) / beta + O(beta^{-2})`` for
the tilted law, exact for a linear reward on Gaussian data). Members differ in anchor, step length and the treatment of
bad samples: each gives ``loss``, one number a sample and draw. All arithmetic is in the dtype of the samples.

The identity wants v to be the exact velocity of the samples, which that of a guided model is not. Losses are taken
without guidance, and so are rollouts where a member does not say otherwise: the reward takes the place of guidance.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from girsanov.grids import Grid
from girsanov.methods.advantages.base import Advantage, GroupNormalised
from girsanov.methods.advantages.robust import Clipped
from girsanov.methods.advantages.scoring import judge
from girsanov.methods.base import Chunk, Method, State, Turn
from girsanov.methods.forward.draws import Draw, ForwardBatch
from girsanov.methods.forward.times import Times, UniformTimes
from girsanov.methods.online import sample_and_score
from girsanov.models import velocity
from girsanov.policy import Policy, Use
from girsanov.rewards.base import Reward
from girsanov.samplers.base import Sampler
from girsanov.samplers.heun import Heun
from girsanov.starts import first_states
from girsanov.types import Batch, Cond, Prompts

RENOISE = 3  # noise stream of the draws


@dataclass(frozen=True, kw_only=True)
class ForwardMethod(Method):
    """Regression on re-noised samples.

    Attributes:
        reward: any score; no gradient is asked of it.
        sampler: any solver.
        grid: times of the rollout.
        advantage: rewards to advantages.
        times: at which times samples are re-noised.
        draws: how often each sample is re-noised.
        shared_noise: re-noise the samples of a group with the same times and noise.
        rollout_micro_batch: samples rolled out at a time, each lot scored while the next is rolled out; None is all.
    """

    reward: Reward
    sampler: Sampler = Heun()
    grid: Grid = field(default_factory=lambda: Grid.uniform(10))
    advantage: Advantage = Clipped(GroupNormalised(), 5.0)
    times: Times = UniformTimes()
    draws: int = 4
    shared_noise: bool = False
    rollout_micro_batch: int | None = None

    guided: ClassVar[tuple[Use, ...]] = ()

    @property
    def behaviour(self) -> str:
        """The view that samples."""
        return "current"

    @property
    def frozen(self) -> tuple[str, ...]:
        """The views whose velocities the loss reads as constants."""
        return ()

    def before(self, policy: Policy, state: State, turn: Turn) -> None:
        """What moves before a batch is collected."""

    def prepare(self, policy: Policy, batch: ForwardBatch, prompts: Prompts, turn: Turn) -> ForwardBatch:
        """What must be known of whole groups before the losses: a note for every draw."""
        return batch

    @abstractmethod
    def loss(
        self, v: Tensor, frozen: Mapping[str, Tensor], draw: Draw, batch: ForwardBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss [B] of velocities v [B, *D] at a draw, given those of the frozen views, and what to log."""

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """One rollout, its rewards, and the draws."""
        self.before(policy, state, turn)
        model = policy.view(self.behaviour, "rollout")
        with torch.no_grad():
            x_T = first_states(model, self.grid, turn.noise(prompts.ids), prompts.cond, policy.dtype)
            path, pending = sample_and_score(
                model, self.sampler, self.grid, x_T, prompts, self.reward, turn,
                keep=(), micro_batch=self.rollout_micro_batch,
            )  # fmt: skip
        x0 = path.x0
        key = prompts.group if self.shared_noise else prompts.ids
        source, draws = turn.noise(key, RENOISE), list[Draw]()
        for k in range(self.draws):
            t = self.times(source.uniform(), k, self.draws, self.grid)
            draws.append(Draw.of(model.process, x0, t, source(x0)))
        reward, advantage, mask = judge(self.reward, pending, self.advantage, prompts, state, turn)
        batch = ForwardBatch(reward, advantage.to(x0.dtype), mask, prompts.cond, tuple(draws))
        return self.prepare(policy, batch, prompts, turn)

    def constants(self, policy: Policy, draw: Draw, cond: Cond, names: Sequence[str]) -> dict[str, Tensor]:
        """Velocities of views at a draw, without a graph."""
        with torch.no_grad():
            return {name: velocity(policy.view(name, "train"), draw.x, draw.t, cond) for name in names}

    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """One chunk a draw; samples without a signal add nothing."""
        assert isinstance(batch, ForwardBatch)
        for draw in batch.draws:
            frozen = self.constants(policy, draw, batch.cond, self.frozen)
            v = velocity(policy.view("current", "train"), draw.x, draw.t, batch.cond)
            loss, metrics = self.loss(v, frozen, draw, batch)
            yield Chunk(torch.where(batch.mask, loss, torch.zeros_like(loss)).mean() / len(batch.draws), metrics)
