r"""The first policy gradients on diffusion models, as compositions.

============  ==================================================================================================
DDPO-IS       clipped importance form; rewards normalised by running buffers of each prompt
DDPO-SF       the same with the plain score function: one update a batch
DPOK          score function, KL to the *pretrained* model inside the gradient; ``-a r grad log p + b grad KL`` is
              ``beta = b / a``; the learned value baseline is the leave-one-out mean here, equally unbiased
============  ==================================================================================================

On a diffusion model DDIM with eta = 1, their sampler, is ``GDDIM(1.0)``. Published: 50 steps, guidance 5, log-probs
averaged over the latent; DDPO: 256 samples an iteration, 2 to 4 updates, lr 3e-4 on LoRA; DPOK: a = 10, b = 0.01 (as
remembered, not checked against the paper).

References: Black et al. 2023, arXiv:2305.13301; Fan et al. 2023, arXiv:2305.16381, Eq. 8.
"""

from dataclasses import dataclass, field

from girsanov.grids import Grid
from girsanov.methods.advantages.base import Advantage, LeaveOneOut
from girsanov.methods.advantages.buffers import RunningBuffer
from girsanov.methods.advantages.robust import Clipped
from girsanov.methods.policy_gradient.clipped import ClippedPG
from girsanov.methods.policy_gradient.penalty import Penalty, PerStepKL
from girsanov.samplers.base import Sampler
from girsanov.samplers.gddim import GDDIM
from girsanov.surrogates import Clip, ScoreFunction, Surrogate


def fifty() -> Grid:
    """50 equal steps."""
    return Grid.uniform(50)


@dataclass(frozen=True, kw_only=True)
class DDPO(ClippedPG):
    """DDPO, clipped importance sampling."""

    sampler: Sampler = GDDIM(1.0)
    grid: Grid = field(default_factory=fifty)
    advantage: Advantage = Clipped(RunningBuffer(32, 16), 5.0)
    surrogate: Surrogate = Clip(1e-4, reduce="mean")


@dataclass(frozen=True, kw_only=True)
class DDPOScoreFunction(DDPO):
    """DDPO, score function."""

    surrogate: Surrogate = ScoreFunction(reduce="mean")


@dataclass(frozen=True, kw_only=True)
class DPOK(ClippedPG):
    """DPOK: score function with the KL to the pretrained model of every step."""

    sampler: Sampler = GDDIM(1.0)
    grid: Grid = field(default_factory=fifty)
    advantage: Advantage = LeaveOneOut()
    surrogate: Surrogate = ScoreFunction(reduce="sum")
    kl: Penalty | None = PerStepKL(1e-3)
