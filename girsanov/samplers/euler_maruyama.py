r"""Euler-Maruyama on the reverse SDE with any stochasticity.

For every diffusion rate ``q`` (a variance per unit of time) the reverse process, run from t = 1 to t = 0,

.. math:: dx = [ v - \tfrac q2 \nabla\log p_t ]\, dt + \sqrt q\, d\bar B
             = [ v + \frac{q}{2\sigma} \epsilon ]\, dt + \sqrt q\, d\bar B

has the marginals of the forward process. ``q = eta^2 g^2`` scales the noise of the reverse SDE, ``g^2 = 2 sigma W /
alpha``. One step with x_0 and eps frozen, ``h = s - t < 0``:

.. math:: A = \alpha + h \dot\alpha, \qquad B = \sigma + h (\dot\sigma + \frac{q}{2\sigma}), \qquad std = \sqrt{q |h|}

Where alpha = 0 (rectified flow and cosine at t = 1) g is infinite. There, and wherever a step starts with less than a
quarter of the signal it ends with (a grid from t = 0.999), the alpha of the next grid time stands in for it: any rate q
keeps the marginals, so this costs no bias in the limit. Nearby, ``g^2 h`` stays of order one however small h is: on
those processes the first steps carry an error in the variance that only fades as ``h^(2 eta^2)``. GDDIM integrates that
part exactly.

Reference: Song et al. 2021, arXiv:2011.13456, Eq. 6 and appendix D (reverse SDE, probability flow).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.processes import Process
from girsanov.samplers.base import EtaSampler
from girsanov.types import Step


def euler_maruyama(process: Process, step: Step, rate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(A, B, std)`` of one step at a diffusion rate: variance per unit of time, of the shape of the step's times."""
    c, h = process(step.t), step.h
    return c.alpha + h * c.d_alpha, c.sigma + h * (c.d_sigma + rate / (2 * c.sigma)), (rate * h.abs()).sqrt()


def finite_g2(process: Process, step: Step) -> Tensor:
    """``g^2 = 2 sigma W / alpha`` at the start of a step; alpha at its end where that is over four times as large."""
    now, after = process(step.t), process(step.s)
    return 2 * now.sigma * now.wronskian / torch.where(4 * now.alpha >= after.alpha, now.alpha, after.alpha)


@dataclass(frozen=True)
class EulerMaruyama(EtaSampler):
    """First-order reverse SDE. ``eta`` scales the standard deviation: 0 Euler, 1 reverse SDE, above 1 more noise."""

    def coefficients(self, process: Process, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """``(A, B, std)`` at ``q = eta^2 g^2``."""
        return euler_maruyama(process, step, self.eta**2 * finite_g2(process, step))
