r"""Policy gradients whose likelihood is a denoising error: FPO, and AWM with its weighting.

The flow-matching error of a sample bounds its negative log-likelihood, so ``l = -w(e)`` with ``e = |v - u|^2 / d`` at
the *same* (t, eps) stands in for ``log pi``, and

.. math:: \rho = \exp(l - l_{old}), \qquad L = \ell(\log\rho, A) + \kappa\, \|v - v_{ref}\|^2 / d
    + \lambda\, \|v - v_{old}\|^2 / d

with any surrogate ell (clip, ...). At the first update rho = 1 and the gradient is that of ``A w'(e) |v - u|^2``:
regression on clean targets, whereas the gradient of a sampler's step is regression on noisy ones. The ratio is that of
one draw (Jensen's inequality biases it upwards).

========  ================================================================  ========================================
member    w(e)                                                              besides
========  ================================================================  ========================================
FPO       ``e``                                                             clip 0.05
AWM       ``(t / p) ((e + 1e-10)^p - 1e-10^p)``, p = 1/4                    kappa = .001, lambda = 1 to a moving copy
========  ================================================================  ========================================

References: McAllister et al. 2025, arXiv:2507.21053 (FPO; its form with the ratio of single draws);
Xue et al. 2025, arXiv:2509.25050 (AWM; 6 draws, noise level .4 over 14 steps, 24 samples a prompt; its clip range is
not known to us, FPO's stands in).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.base import State, Turn
from girsanov.methods.forward.base import ForwardMethod
from girsanov.methods.forward.draws import Draw, ForwardBatch
from girsanov.methods.forward.errors import mean_square
from girsanov.methods.forward.old import OLD, DecaySchedule, RampDecay, move_old
from girsanov.methods.forward.weighting import ErrorWeight, Huber, Plain
from girsanov.models import velocity
from girsanov.policy import Policy
from girsanov.surrogates import Clip, Surrogate, ratio_of
from girsanov.types import Batch


@dataclass(frozen=True, kw_only=True)
class FPO(ForwardMethod):
    """Flow policy optimisation: a clipped policy gradient on denoising errors.

    Attributes:
        surrogate: of the log-ratio of one draw.
        shape: w, what stands for the negative log-likelihood.
        kappa: weight of the distance from the reference.
        lag: lambda, weight of the distance from the moving copy.
        decay: how the copy follows.
    """

    surrogate: Surrogate = Clip(0.05)
    shape: ErrorWeight = Plain()
    kappa: float = 0.0
    lag: float = 0.0
    decay: DecaySchedule = RampDecay(0.001, 0.3)

    def __post_init__(self) -> None:
        if not (self.kappa >= 0 and self.lag >= 0):
            raise GirsanovError(f"the weights kappa and lag must be at least 0, not {self.kappa} and {self.lag}")
        if self.surrogate.needs_divergence:
            raise GirsanovError("a denoising error has no divergence for a trust mask: use Clip or Hinge")

    @property
    def frozen(self) -> tuple[str, ...]:
        """The reference and the copy, where they have a weight."""
        return ("reference",) * (self.kappa > 0) + (OLD,) * (self.lag > 0)

    def setup(self, policy: Policy) -> State:
        """Starts the moving copy if it has a weight."""
        if self.lag > 0:
            policy.keep_copy(OLD)
        return {}

    def before(self, policy: Policy, state: State, turn: Turn) -> None:
        """Moves the copy."""
        if self.lag > 0:
            move_old(policy, self.decay, state, turn)

    @torch.no_grad()
    def anchor(self, policy: Policy, batch: Batch, state: State) -> Batch:
        """The micro-batch with the old ``l`` of every draw."""
        assert isinstance(batch, ForwardBatch)
        model = policy.view("current", "train")
        return batch.with_notes([self.score(velocity(model, d.x, d.t, batch.cond), d) for d in batch.draws])

    def score(self, v: Tensor, draw: Draw) -> Tensor:
        """``l = -w(|v - u|^2 / d)``, [B]."""
        return -self.shape(mean_square(v - draw.target), draw.t)

    def loss(
        self, v: Tensor, frozen: Mapping[str, Tensor], draw: Draw, batch: ForwardBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The surrogate of the ratio, and the two distances."""
        l = self.score(v, draw)
        log_ratio = l - (l.detach() if draw.note is None else draw.note)
        term, silent = self.surrogate(log_ratio.unsqueeze(1), batch.advantage, batch.mask)
        rho = ratio_of(log_ratio.detach())
        metrics = {"ratio": rho.mean(), "ratio_min": rho.min(), "ratio_max": rho.max(), "clip_fraction": silent}
        loss = term.squeeze(1)
        for name, weight in (("reference", self.kappa), (OLD, self.lag)):
            if weight > 0:
                loss = loss + weight * mean_square(v - frozen[name])
        return loss, metrics


@dataclass(frozen=True, kw_only=True)
class AWM(FPO):
    """Advantage weighted matching."""

    shape: ErrorWeight = Huber(0.25)
    kappa: float = 1e-3
    lag: float = 1.0
    draws: int = 6
