r"""gDDIM with its own stochasticity in every step.

.. math:: x_s = \alpha_s x_0 + \sigma_s (k_i \epsilon + \sqrt{1 - k_i^2} z), \qquad k_i = (\rho_s / \rho_t)^{\eta_i^2}

Every eta gives a reverse process with the marginals of the forward process, so it may change from step to step: ``eta_i
= curve(i / (n - 1))``, i = 0 the noisiest step. A ``Staircase`` of n values names each step's eta on a grid of n steps.
Steps with eta = 0 are deterministic, have no density, and are left out of policy gradients.

Reference: Zhang et al. 2022, arXiv:2206.05564 (gDDIM; the schedule is ours).
"""

from dataclasses import dataclass

from torch import Tensor

from girsanov.annealing import Curve, Linear
from girsanov.processes import Process
from girsanov.samplers.base import AffineSampler
from girsanov.samplers.gddim import GDDIM
from girsanov.types import Step


@dataclass(frozen=True)
class GDDIMSchedule(AffineSampler):
    """gDDIM whose eta follows a curve over the steps. Raises GirsanovError at a step where the curve is negative."""

    curve: Curve = Linear(1.5, 0.5)

    @property
    def stochastic(self) -> bool:
        """Whether eta is above 0 somewhere (looked up at 257 points)."""
        return any(eta > 0 for eta in self.curve.over(257))

    @property
    def memoryless(self) -> bool:
        """eta = 1 throughout."""
        return all(eta == 1 for eta in self.curve.over(257))

    def eta(self, step: Step) -> float:
        """The stochasticity of a step."""
        return self.curve.at(step.i / max(1, step.n - 1))

    def coefficients(self, process: Process, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Those of ``GDDIM(eta_i)``."""
        return GDDIM(self.eta(step)).coefficients(process, step)
