r"""DRaFT-LV: the one-step reward gradient, averaged over fresh noise at the last time (lower variance than DRaFT-1).

The sampled image x_0 is noised again n times to the time t_{N-1} at which the last step begins, and denoised once:

.. math:: x^{(i)} = \alpha\, \mathrm{sg}(x_0) + \sigma \epsilon_i, \qquad
          L = -\frac1n \sum_{i=1}^{n} E\big[ r(\hat x_0(x^{(i)}, t_{N-1})) \big]

hat x_0 is the network's denoised prediction. One rollout serves n gradients. Cost an iteration: N passes, n trainable
passes, n backward passes of reward and decoder.

Reference: Clark et al. 2023, arXiv:2309.17400, section 3.3 and algorithm 1 (n = 2).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.base import Chunk, Method, State, Turn
from girsanov.methods.differentiable import require_gradient, scores
from girsanov.methods.direct.base import CutBatch, reward_chunk, run_up_to
from girsanov.methods.direct.objectives import Maximise, Objective
from girsanov.models import denoised
from girsanov.policy import Policy
from girsanov.predictions import combine
from girsanov.rewards.base import Reward
from girsanov.samplers.base import Sampler
from girsanov.samplers.gddim import GDDIM
from girsanov.types import Batch, Prompts


@dataclass(frozen=True, kw_only=True)
class DRaFTLV(Method):
    """One-step reward gradients at n noised copies of each sample.

    Attributes:
        reward: differentiable, larger is better.
        sampler: any.
        grid: times of the rollout; its last step says how much noise the copies get.
        copies: n.
        objective: the loss of a reward.
    """

    reward: Reward
    sampler: Sampler = GDDIM(0.0)
    grid: Grid = field(default_factory=lambda: Grid.uniform(20))
    copies: int = 2
    objective: Objective = Maximise()

    def __post_init__(self) -> None:
        require_gradient(self.reward, "DRaFT-LV")
        if self.copies < 1:
            raise GirsanovError(f"DRaFT-LV needs at least one noised copy a sample, not {self.copies}")

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """The whole rollout, and the noise of the copies."""
        return run_up_to(len(self.grid), policy, self.sampler, self.grid, prompts, turn, self.copies)

    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """One chunk a copy."""
        assert isinstance(batch, CutBatch)
        model, t = policy.view("current", "rollout"), self.grid[len(self.grid) - 1].t
        c = model.process(t)
        for noise in batch.noises:
            x0 = denoised(model, combine(batch.x, noise, c.alpha, c.sigma), t, batch.prompts.cond)
            chunk = reward_chunk(self.objective, scores(self.reward, model, x0, batch.prompts))
            yield Chunk(chunk.loss / self.copies, chunk.metrics)
