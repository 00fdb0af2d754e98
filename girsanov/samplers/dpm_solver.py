r"""DPM-Solver++(2M): a second-order multistep solver of the probability-flow ODE in the log signal-to-noise ratio.

With ``lambda = -log rho`` and the data prediction ``D``, the ODE over a step ``H = lambda_s - lambda_t`` integrates to

.. math:: x_s = \frac{\sigma_s}{\sigma_t} x_t + \alpha_s (1 - e^{-H}) D, \qquad
          D = \hat x_0(x_t) + \frac{H}{2 H_{prev}} [ \hat x_0(x_t) - \hat x_0(x_{prev}) ]

D is the linear extrapolation of the last two predictions to the middle of the step. ``e^{-H} = rho_s / rho_t`` is
finite at both ends of the interval. The correction is left out where there is no history, where it starts at alpha = 0
(H_prev infinite) and where it ends at sigma = 0 (H infinite): the first and the last step are of first order (DDIM),
which costs O(h^2) once.

Reference: Lu et al. 2022, arXiv:2211.01095, Algorithm 2.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from girsanov.models import ModelLike
from girsanov.predictions import combine, convert, scale
from girsanov.samplers.base import Sampler, rho_ratio
from girsanov.types import Cond, Kernel, Stage, Step


@dataclass(frozen=True)
class History:
    """The step before: its data prediction x0 [B, *D] and its time t ([] or [B])."""

    x0: Tensor
    t: Tensor

    def take(self, index: Tensor) -> "History":
        """The history of the chosen samples."""
        return History(self.x0[index], self.t if self.t.ndim == 0 else self.t[index])


@dataclass(frozen=True)
class DPMSolverPP2M(Sampler):
    """Second-order deterministic multistep sampler, one network pass a step; its state is a ``History``."""

    @property
    def order(self) -> int:
        """2."""
        return 2

    @property
    def single_step(self) -> bool:
        """False: a step also depends on the prediction of the step before."""
        return False

    def kernel(
        self, model: ModelLike, x: Tensor, step: Step, cond: Cond | None = None, state: Any = None
    ) -> tuple[Kernel, History]:
        """The deterministic step; a state of None is a first-order step."""
        now, after = model.process(step.t), model.process(step.s)
        p = model(x, step.t, cond)
        x0, ratio = convert(p, x, now, model.prediction, "x0"), rho_ratio(now, after)
        data, weight = x0, torch.zeros_like(ratio)
        if state is not None:
            length, before = -torch.log(ratio), torch.log(model.process.rho(state.t) / model.process.rho(step.t))
            weight = torch.where(after.sigma > 0, length / (2 * before), 0.0)
            data = torch.add(x0 * scale(1 + weight, x), state.x0 * scale(-weight, x))
        share = after.alpha * (1 - ratio)
        gain = -share * (1 + weight) * now.sigma / now.wronskian
        mean = combine(x, data, after.sigma / now.sigma, share)
        stages, raw = (Stage(x, step.t, step.h.abs()),), (x, p, now, model.prediction)
        return Kernel(mean, torch.zeros_like(ratio), False, gain, stages, raw), History(x0, step.t)
