r"""Flow-SDE: the sampler of Flow-GRPO and MixGRPO.

Euler-Maruyama on the marginal-preserving SDE of rectified flow with ``sigma_t = a sqrt(t / (1 - t))``:

.. math:: mean = x (1 + \frac{\sigma_t^2}{2 t} h) + v (1 + \frac{\sigma_t^2 (1 - t)}{2 t}) h, \qquad
          std = \sigma_t \sqrt{-h}

with ``1 - t`` replaced by ``1 - s`` at t = 1 (and just below it, see ``euler_maruyama``). Since ``g^2 = 2 t / (1 -
t)``, the paper's level is ``a = sqrt(2) eta``: this is ``EulerMaruyama(a / sqrt(2))`` on a rectified flow, kept under
its published name and unit.

Reference: Liu et al. 2025, arXiv:2505.05470 (its public code for the rule at t = 1).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.processes import Process, RectifiedFlow
from girsanov.samplers.base import AffineSampler
from girsanov.samplers.euler_maruyama import euler_maruyama, finite_g2
from girsanov.types import Step


@dataclass(frozen=True)
class FlowSDE(AffineSampler):
    """Euler-Maruyama at the published noise level ``a = sqrt(2) eta``."""

    a: float = 0.7

    processes: ClassVar[tuple[type[Process], ...]] = (RectifiedFlow,)

    def __post_init__(self) -> None:
        if not self.a >= 0:
            raise GirsanovError(f"the noise level a must be at least 0, not {self.a}")

    @property
    def stochastic(self) -> bool:
        """a > 0."""
        return self.a > 0

    @property
    def memoryless(self) -> bool:
        """a = sqrt(2)."""
        return math.isclose(self.a, math.sqrt(2))

    def coefficients(self, process: Process, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """``(A, B, std)`` at ``sigma_t^2 = a^2 t / (1 - t)``."""
        return euler_maruyama(process, step, self.a**2 / 2 * finite_g2(process, step))
