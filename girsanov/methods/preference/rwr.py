r"""Reward-weighted regression (HIVE): the reference's own samples, each weighted by ``exp(r / beta)``.

.. math:: L = \frac{e^{r / \beta}}{mean\, e^{r / \beta}}\, \frac{\| v - u \|^2}{d}, \qquad x_0 \sim p_{ref}

Samples come from the *reference*, so the weights tilt the pretrained law once and for all: for any reward the minimiser
at every point is the velocity of ``p_ref exp(r / beta)`` exactly (``E_ref[w u | x_t] / E_ref[w | x_t]``). That is what
tells it from ORW-CFM-W2, whose samples are the policy's own: there the tilt is applied anew every round, and a distance
to the reference must stop it. The price is variance: the effective number of samples, ``(sum w)^2 / sum w^2``, falls
like ``exp(-Var(r) / beta^2)``; the mean square of the weights is logged, whose inverse is the effective share.

The mean is over all samples of the iteration and all processes; the advantage is not read. (Normalising within a group
would put the group's own sum below each weight: a bias of order 1 / G.)

Reference: Zhang et al. 2023, arXiv:2303.09618, Eq. 4 (HIVE); Peters & Schaal 2007 (reward-weighted regression).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.base import Turn
from girsanov.methods.forward.base import ForwardMethod
from girsanov.methods.forward.draws import Draw, ForwardBatch
from girsanov.methods.forward.errors import mean_square
from girsanov.policy import Policy, Use
from girsanov.precision import as_wide
from girsanov.types import Prompts


@dataclass(frozen=True, kw_only=True)
class RewardWeighted(ForwardMethod):
    """Regression on reweighted samples of the reference.

    Attributes:
        beta: of the tilt.
    """

    beta: float = 1.0

    guided: ClassVar[tuple[Use, ...]] = ("rollout",)

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise GirsanovError(f"beta of a tilt must be positive, not {self.beta}")

    @property
    def behaviour(self) -> str:
        """The reference samples."""
        return "reference"

    def prepare(self, policy: Policy, batch: ForwardBatch, prompts: Prompts, turn: Turn) -> ForwardBatch:
        """The weights, over all processes, as the note of every draw; a sample without a reward has none."""
        r = as_wide(batch.reward)
        heard = r.isfinite()
        every = turn.reduce.gather(r)
        centre = every[every.isfinite()].mean() if bool(every.isfinite().any()) else every.new_zeros(())
        w = torch.where(heard, ((r - centre) / self.beta).clamp(max=30.0).exp(), torch.zeros_like(r))
        mean = turn.reduce.gather(w).mean().clamp_min(1e-30)
        weighted = dataclasses.replace(batch, mask=heard)
        return weighted.with_notes([(w / mean).to(batch.advantage)] * len(batch.draws))

    def loss(
        self, v: Tensor, frozen: Mapping[str, Tensor], draw: Draw, batch: ForwardBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``w |v - u|^2 / d``."""
        assert draw.note is not None
        return draw.note * mean_square(v - draw.target), {"weight_square": draw.note.square().mean()}
