r"""Direct reward gradients: back-propagate the reward through the last K steps of sampling (DRaFT, DRaFT-K, AlignProp).

.. math:: L = -E[ r(x_0) ], \qquad x_0 = F_N \circ \dots \circ F_{N-K+1}(\mathrm{sg}(x_{N-K}))

F are the sampler's steps, reparameterised by their noise, sg stops the gradient. K = N is the exact gradient of the
expected reward of the sampler on this grid; K < N leaves out how the earlier steps move x_{N-K}, and is no gradient of
any objective. There is no price for leaving the reference: without early stopping or a LoRA strength below 1 the end
point is the largest reward, not a law.

==========================  ============================================
DRaFT                       ``DirectGradient()``
DRaFT-K                     ``DirectGradient(truncation=LastK(K))``
AlignProp                   ``AlignProp()``: random K, checkpointing
==========================  ============================================

Symbols: N steps, K differentiable ones. Cost an iteration: N passes, K of them with a backward pass, one backward pass
of reward and decoder; with ``checkpoint`` K passes more, and memory of one step's activations.

References: Clark et al. 2023, arXiv:2309.17400, Eqs. 3-4 and algorithm 1; Prabhudesai et al. 2023, arXiv:2310.03739.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from girsanov.grids import Grid
from girsanov.methods.base import Chunk, Method, State, Turn
from girsanov.methods.differentiable import require_gradient, scores
from girsanov.methods.direct.base import CutBatch, reward_chunk, run_up_to
from girsanov.methods.direct.objectives import Maximise, Objective
from girsanov.methods.direct.truncation import GaussianK, LastK, Truncation
from girsanov.noise import Recorded
from girsanov.policy import Policy
from girsanov.rewards.base import Reward
from girsanov.rollout import rollout
from girsanov.samplers.base import Sampler
from girsanov.samplers.gddim import GDDIM
from girsanov.types import Batch, Prompts


@dataclass(frozen=True, kw_only=True)
class DirectGradient(Method):
    """The reward's gradient through the last K steps of any sampler.

    Attributes:
        reward: differentiable, larger is better.
        sampler: any; a stochastic one is differentiated with its noise held fixed.
        grid: times of the rollout.
        truncation: how K is chosen.
        objective: the loss of a reward.
        checkpoint: recompute activations in the backward pass instead of storing those of K steps.
    """

    reward: Reward
    sampler: Sampler = GDDIM(0.0)
    grid: Grid = field(default_factory=lambda: Grid.uniform(20))
    truncation: Truncation = LastK()
    objective: Objective = Maximise()
    checkpoint: bool = False

    def __post_init__(self) -> None:
        require_gradient(self.reward, "a direct reward gradient")
        self.truncation(len(self.grid), Turn(0, 0))

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """The steps before the cut, and the noise of those after it."""
        k = self.truncation(len(self.grid), turn)
        draws = k if self.sampler.stochastic else 0
        return run_up_to(len(self.grid) - k, policy, self.sampler, self.grid, prompts, turn, draws)

    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """One chunk: the last K steps with their graph, decoder, reward."""
        assert isinstance(batch, CutBatch)
        model = policy.view("current", "rollout")
        path = rollout(
            model,
            self.sampler,
            self.grid,
            batch.x,
            batch.prompts.cond,
            noise=Recorded(batch.noises),
            keep=(),
            checkpoint=self.checkpoint,
            part=range(batch.first.i, len(self.grid)),
            state=batch.state,
        )
        yield reward_chunk(self.objective, scores(self.reward, model, path.x0, batch.prompts))


@dataclass(frozen=True, kw_only=True)
class AlignProp(DirectGradient):
    """``DirectGradient`` with the defaults of AlignProp: a random number of steps, and checkpointing.

    The released code minimises ``Distance(10, 0.01)``, ten being the best aesthetic score; below it that is
    ``Maximise()`` up to the scale.
    """

    truncation: Truncation = GaussianK()
    checkpoint: bool = True
