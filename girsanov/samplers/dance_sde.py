r"""Dance-SDE: the sampler of DanceGRPO on rectified flow, a diffusion of constant strength.

.. math:: mean = x + \Big( v + \frac{e^2}{2} \frac{x - (1 - t) \hat x_0}{t^2} \Big) h, \qquad std = e \sqrt{-h}

This is Euler-Maruyama on the marginal-preserving SDE with the constant rate ``q = e^2``. The paper calls e "eta"; it is
a diffusion coefficient, not a share of the reverse SDE's (so no value of it is memoryless).

Reference: Xue et al. 2025, arXiv:2505.07818 (public code: ``sde_solver``).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.processes import Process, RectifiedFlow
from girsanov.samplers.base import AffineSampler
from girsanov.samplers.euler_maruyama import euler_maruyama
from girsanov.types import Step


@dataclass(frozen=True)
class DanceSDE(AffineSampler):
    """Euler-Maruyama at a constant diffusion coefficient, named ``eta`` as in the paper."""

    eta: float = 0.3

    processes: ClassVar[tuple[type[Process], ...]] = (RectifiedFlow,)

    def __post_init__(self) -> None:
        if not self.eta >= 0:
            raise GirsanovError(f"a diffusion coefficient must be at least 0, not {self.eta}")

    @property
    def stochastic(self) -> bool:
        """eta > 0."""
        return self.eta > 0

    def coefficients(self, process: Process, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """``(A, B, std)`` at the rate ``eta^2``."""
        return euler_maruyama(process, step, torch.full_like(step.h, self.eta**2))
