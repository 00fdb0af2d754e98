r"""One network target for every process and every kind of prediction.

For data of standard deviation s, the best linear guess of a prediction ``p = a x_0 + b eps`` from ``x = alpha x_0 +
sigma eps`` is ``c_skip x``; what is left has standard deviation ``c_out``. With ``D = alpha^2 s^2 + sigma^2`` and the
determinant ``det = alpha b - sigma a`` of the prediction table,

.. math::
    p = c_{skip}\, x + c_{out}\, F(c_{in} x, \theta), \qquad
    c_{in} = D^{-1/2}, \quad c_{skip} = \frac{a \alpha s^2 + b \sigma}{D}, \quad c_{out} = s\, det\, D^{-1/2}

Insert p and x: the network's target is

.. math::
    F = \cos\theta\, \epsilon - \sin\theta\, x_0 / s, \qquad c_{in} x = \cos\theta\, x_0 / s + \sin\theta\, \epsilon,
    \qquad \tan\theta = \sigma / (\alpha s)

whatever a, b, alpha and sigma were: the process and the kind change how F is read, never what it learns. It has unit
scale at every time, and so has the network's clock ``2 theta / pi`` in [0, 1]. With x0 and VE this is the
preconditioning of EDM (which learns F up to its sign, and has another clock).

Reference: Karras et al. 2022, arXiv:2206.00364, Eq. 7 and appendix B.6; Salimans & Ho 2022, arXiv:2202.00512, section
4 (v).
"""

import math

import torch
from torch import Tensor, nn

from girsanov.errors import GirsanovError
from girsanov.predictions import Prediction, determinant, row, scale
from girsanov.processes import Process, Schedule
from girsanov.types import Cond


def coefficients(c: Schedule, prediction: Prediction, data_std: float) -> tuple[Tensor, Tensor, Tensor]:
    """``(c_in, c_skip, c_out)``, float64 of the shape of the schedule."""
    a, b = row(c, prediction)
    total = (c.alpha * data_std) ** 2 + c.sigma**2
    return (
        total.rsqrt(),
        (a * c.alpha * data_std**2 + b * c.sigma) / total,
        data_std * determinant(c, prediction) * total.rsqrt(),
    )


def clock(c: Schedule, data_std: float) -> Tensor:
    """``(2 / pi) theta`` in [0, 1], float64: 0 at data, 1 at noise, 1/2 where noise and signal are equal."""
    return torch.atan2(c.sigma, c.alpha * data_std) * (2 / math.pi)


def time_of_clock(u: Tensor, process: Process, data_std: float) -> Tensor:
    """The time at which the clock shows u in (0, 1), float64 of any shape; 1 where the process ends earlier."""
    return process.time_of_rho(data_std * torch.tan(u * (math.pi / 2))).clamp(max=1.0)


class Preconditioned(nn.Module):
    """The network ``c_skip x + c_out F(c_in x, clock, cond)`` around a network F of unit scale.

    Args:
        net: F, ``net(x [B, *D], t [B], cond) -> [B, *D]``.
        process, prediction: what the result is read as.
        data_std: standard deviation of the data.
    """

    def __init__(self, net: nn.Module, process: Process, prediction: Prediction, data_std: float = 1.0) -> None:
        super().__init__()
        if not 0 < data_std < math.inf:
            raise GirsanovError(f"the standard deviation of the data must be positive, not {data_std}")
        self.net, self.process = net, process
        self.prediction: Prediction = prediction
        self.data_std = float(data_std)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """The prediction [B, *D] at x [B, *D], t [B]."""
        c = self.process(t)
        c_in, c_skip, c_out = (scale(v, x) for v in coefficients(c, self.prediction, self.data_std))
        return x * c_skip + self.net(x * c_in, clock(c, self.data_std).to(x.dtype), cond) * c_out
