r"""gDDIM with any stochasticity: the default stochastic sampler.

All reverse processes ``dy = -(1 + eta^2) rho score d rho + eta sqrt(2 rho) dW`` in ``y = x / alpha``, ``rho = sigma /
alpha``, share the marginals of the forward process. With x_0 frozen over the step, the integral is exact:

.. math:: x_s = \alpha_s x_0 + \sigma_s (k \epsilon + \sqrt{1 - k^2} z), \qquad k = (\rho_s / \rho_t)^{\eta^2}

eta = 0 is DDIM, eta = 1 is DDPM's ancestral sampling, and any eta > 0 is valid (``k`` stays in [0, 1]), unlike DDIM's
own scaling of the ancestral noise. For eta = 1 the mean is exact on any grid when the data is Gaussian. The last step
to sigma = 0 is noiseless.

References: Zhang et al. 2022, arXiv:2206.05564 (gDDIM); Song et al. 2021, arXiv:2010.02502 (DDIM).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.processes import Process
from girsanov.samplers.base import EtaSampler, rho_ratio
from girsanov.types import Step


@dataclass(frozen=True)
class GDDIM(EtaSampler):
    """Exponential integrator. ``eta`` scales the standard deviation: 0 DDIM, 1 DDPM, above 1 more noise."""

    def coefficients(self, process: Process, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """``alpha_s, sigma_s k, sigma_s sqrt(1 - k^2)``."""
        now, after = process(step.t), process(step.s)
        ratio = rho_ratio(now, after)
        k = ratio ** (self.eta**2)
        spread = (-torch.expm1(2 * self.eta**2 * torch.log(ratio))).sqrt() if self.eta > 0 else torch.zeros_like(k)
        return after.alpha, after.sigma * k, after.sigma * spread
