r"""CPS: coefficients-preserving sampling on rectified flow, with a correlation that does not depend on the step.

.. math:: x_s = (1 - s) \hat x_0 + s (k \hat\epsilon + \sqrt{1 - k^2} z), \qquad k = \cos(\pi e / 2)

The same family as gDDIM, whose k is ``(rho_s / rho_t)^(eta^2)``. Here k stays away from 1 however short the step is, so
the marginals are *not* those of the process, not even in the limit of small steps: the variance shrinks. It is here for
parity with published runs. The paper calls e "eta".

Reference: Wang & Yu 2025, arXiv:2509.05952 (Flow-CPS).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.processes import Process, RectifiedFlow
from girsanov.samplers.base import AffineSampler
from girsanov.types import Step


@dataclass(frozen=True)
class CPS(AffineSampler):
    """Fresh noise in a fixed share ``sin(pi eta / 2)`` at every step, ``eta`` in [0, 1] as in the paper."""

    eta: float = 0.7

    processes: ClassVar[tuple[type[Process], ...]] = (RectifiedFlow,)

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise GirsanovError(f"the eta of CPS is an angle over pi / 2 and lies in [0, 1], not {self.eta}")

    @property
    def stochastic(self) -> bool:
        """eta > 0."""
        return self.eta > 0

    def coefficients(self, process: Process, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """``alpha_s, sigma_s cos(pi eta / 2), sigma_s sin(pi eta / 2)``."""
        after, angle = process(step.s), math.pi * self.eta / 2
        return after.alpha, after.sigma * math.cos(angle), after.sigma * math.sin(angle)
