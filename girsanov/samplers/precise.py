r"""PRECISE: the exact Gaussian transition of Flow-GRPO's SDE with x_0 frozen over the step.

.. math:: x_s = (1 - s) \hat x_0 + s (k \hat\epsilon + \sqrt{1 - k^2} z), \qquad
          k = \exp\Big(-\int_s^t \frac{\sigma_u^2}{2 u^2} du\Big) = \Big[ \frac{s (1 - t)}{t (1 - s)} \Big]^{a^2 / 2}

for ``sigma_u = a sqrt(u / (1 - u))``. With ``rho = t / (1 - t)`` this is gDDIM at ``eta = a / sqrt(2)``, and it is
computed as such; it keeps its published name and unit. The paper calls a "eta".

Reference: Zou et al. 2026, arXiv:2605.23522.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.processes import Process, RectifiedFlow
from girsanov.samplers.base import AffineSampler
from girsanov.samplers.gddim import GDDIM
from girsanov.types import Step


@dataclass(frozen=True)
class PRECISE(AffineSampler):
    """gDDIM on rectified flow at the published noise level, ``eta`` (the paper's) = sqrt(2) times GDDIM's."""

    eta: float = 0.7

    processes: ClassVar[tuple[type[Process], ...]] = (RectifiedFlow,)

    def __post_init__(self) -> None:
        if not self.eta >= 0:
            raise GirsanovError(f"a noise level must be at least 0, not {self.eta}")

    @property
    def stochastic(self) -> bool:
        """eta > 0."""
        return self.eta > 0

    @property
    def memoryless(self) -> bool:
        """eta = sqrt(2)."""
        return math.isclose(self.eta, math.sqrt(2))

    def coefficients(self, process: Process, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Those of ``GDDIM(eta / sqrt(2))``."""
        return GDDIM(self.eta / math.sqrt(2)).coefficients(process, step)
