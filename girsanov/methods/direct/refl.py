r"""ReFL: the reward of the denoised prediction at a random late step.

.. math:: L = E\big[ \ell( r(\hat x_0(\mathrm{sg}(x_m), t_m)) ) \big], \qquad m = N - K,\; K \text{ random}

The rollout stops at step m without a graph, and one trainable pass predicts x_0 there. The paper draws m from the last
10 of 40 steps and takes ``l(r) = 1e-3 max(0, 2 - r)``; with m the last step (and a step that ends at the denoised
prediction, as DDIM and rectified-flow Euler do at t = 0) it is DRaFT-1.

Cost an iteration: N - K + 1 passes, the last of them with a backward pass, one backward pass of reward and decoder.

Reference: Xu et al. 2023, arXiv:2304.05977 (ImageReward), algorithm 1. Its pretraining loss is left out: mix it in by
training on data beside.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from girsanov.grids import Grid
from girsanov.methods.base import Chunk, Method, State, Turn
from girsanov.methods.differentiable import require_gradient, scores
from girsanov.methods.direct.base import CutBatch, reward_chunk, run_up_to
from girsanov.methods.direct.objectives import Maximise, Objective
from girsanov.methods.direct.truncation import Truncation, UniformK
from girsanov.models import denoised
from girsanov.policy import Policy
from girsanov.rewards.base import Reward
from girsanov.samplers.base import Sampler
from girsanov.samplers.gddim import GDDIM
from girsanov.types import Batch, Prompts


@dataclass(frozen=True, kw_only=True)
class ReFL(Method):
    """The reward's gradient through one denoised prediction.

    Attributes:
        reward: differentiable, larger is better.
        sampler: any.
        grid: times of the rollout.
        truncation: K, how many steps before the end the prediction is made; the default is the last quarter.
        objective: the loss of a reward; the paper's is ``Hinge(2.0, 1e-3)``.
    """

    reward: Reward
    sampler: Sampler = GDDIM(0.0)
    grid: Grid = field(default_factory=lambda: Grid.uniform(20))
    truncation: Truncation = UniformK(0.0, 0.25)
    objective: Objective = Maximise()

    def __post_init__(self) -> None:
        require_gradient(self.reward, "ReFL")
        self.truncation(len(self.grid), Turn(0, 0))

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """The steps before the prediction."""
        k = self.truncation(len(self.grid), turn)
        return run_up_to(len(self.grid) - k, policy, self.sampler, self.grid, prompts, turn, 0)

    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """One chunk: one pass, decoder, reward."""
        assert isinstance(batch, CutBatch)
        model = policy.view("current", "rollout")
        x0 = denoised(model, batch.x, self.grid[batch.first.i].t, batch.prompts.cond)
        yield reward_chunk(self.objective, scores(self.reward, model, x0, batch.prompts))
