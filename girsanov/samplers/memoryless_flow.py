r"""The memoryless sampler of adjoint matching for rectified flow, with the paper's offsets.

In the paper's clock (u = 1 - t, data at u = 1) the base drift is ``2 v_u - kappa x`` with ``kappa = 1/u`` and the noise
is ``sigma^2 = 2 (1 - u) / u``. In ours ``v = -v_u``, so

.. math:: x_s = x + h (2 v + \kappa x) + \sigma \sqrt{|h|} z, \qquad \kappa = \frac{1}{\alpha + c |h|}, \qquad
          \sigma^2 = \frac{2 (\sigma_t + c |h|)}{\alpha + c |h|}

which at ``c = 0`` is ``EulerMaruyama(1)``: ``v + eps / alpha = 2 v + x / alpha`` on a rectified flow. The offset c (1
in the paper) keeps the coefficients finite at t = 1 and the noise away from zero at t = 0. As an affine step: ``A =
alpha - 2 h + h kappa alpha``, ``B = sigma_t + 2 h + h kappa sigma_t``.

Reference: Domingo-Enrich et al. 2024, arXiv:2409.08861, appendix G.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.processes import Process, RectifiedFlow
from girsanov.samplers.base import AffineSampler
from girsanov.types import Step


@dataclass(frozen=True)
class MemorylessFlow(AffineSampler):
    """Euler-Maruyama at eta = 1 with kappa and sigma offset by ``offset`` steps, so that both ends are finite."""

    offset: float = 1.0

    processes: ClassVar[tuple[type[Process], ...]] = (RectifiedFlow,)

    def __post_init__(self) -> None:
        if not self.offset > 0:
            raise GirsanovError(
                f"the offset keeps the first step finite and must be positive, not {self.offset}: use "
                "EulerMaruyama(1.0) for the same sampler without offsets"
            )

    @property
    def stochastic(self) -> bool:
        """Always."""
        return True

    @property
    def memoryless(self) -> bool:
        """Always."""
        return True

    def coefficients(self, process: Process, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """``(A, B, std)`` of the docstring's step."""
        c, h, shift = process(step.t), step.h, self.offset * step.h.abs()
        kappa, variance = 1 / (c.alpha + shift), 2 * (c.sigma + shift) / (c.alpha + shift)
        a = c.alpha + h * (2 * c.d_alpha + kappa * c.alpha)
        b = c.sigma + h * (2 * c.d_sigma + kappa * c.sigma)
        return a, b, (variance * h.abs()).sqrt()
