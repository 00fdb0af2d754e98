r"""How the credit of a sampler step is scaled: its log-ratio, and the weight of its loss.

One step is ``x_s ~ N(mean, std^2)`` with ``mean`` moving at the rate ``gain`` with the velocity, so its log-ratio has
a gradient of size ``|gain| / std`` in the velocity. On Flow-SDE that is ``sqrt|dt| (1/sigma + sigma (1 - t) / (2 t))``,
which falls towards the noise. The published remedies rescale it:

==================  ==========================================================  ====================================
object              formula                                                     source
==================  ==========================================================  ====================================
plain               ``log rho``                                                 the density
ratio-norm          ``std (log rho + KL(new || old))``                          GRPO-Guard, arXiv:2510.22319
proportional        ``log rho * zeta |dt| std / |gain|``                        PCPO, arXiv:2509.25774
per-time            weight ``1 / |dt|``                                         GRPO-Guard
noise-level         weight ``scale * std``                                      TempFlow-GRPO, arXiv:2508.04324
==================  ==========================================================  ====================================

Under the old policy ``E[log rho] = -KL``, so a positive advantage is rarely clipped; ratio-norm has mean 0 and a
variance that does not depend on std. On Flow-SDE ``|gain| / std * std`` is ``(1 + a^2 / 2) |dt|`` at every time, so
weighting with std evens the steps out.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.precision import onto
from girsanov.types import Kernel, Step


class Ratio(ABC):
    """The log-ratio that a surrogate sees."""

    needs_divergence: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, log_ratio: Tensor, divergence: Tensor | None, kernel: Kernel, step: Step) -> Tensor:
        """The rescaled log-ratio [B]; ``divergence`` is ``KL(new || old)`` [B]."""


@dataclass(frozen=True)
class PlainRatio(Ratio):
    """The log-ratio itself."""

    def __call__(self, log_ratio: Tensor, divergence: Tensor | None, kernel: Kernel, step: Step) -> Tensor:
        """``log rho``."""
        return log_ratio


@dataclass(frozen=True)
class RatioNorm(Ratio):
    """``std (log rho + KL)``: mean 0 and the same variance at every step, under the old policy."""

    needs_divergence: ClassVar[bool] = True

    def __call__(self, log_ratio: Tensor, divergence: Tensor | None, kernel: Kernel, step: Step) -> Tensor:
        """``std (log rho + KL)``, linear in the shift of the mean."""
        assert divergence is not None
        return (log_ratio + divergence) * onto(kernel.std, log_ratio.device)


@dataclass(frozen=True)
class ProportionalCredit(Ratio):
    """``log rho * zeta |dt| std / |gain|``: a step's credit is proportional to its length."""

    zeta: float = 1.0

    def __call__(self, log_ratio: Tensor, divergence: Tensor | None, kernel: Kernel, step: Step) -> Tensor:
        """``log rho * zeta |dt| / (|gain| / std)``."""
        if kernel.gain is None:
            raise GirsanovError("proportional credit needs a one-stage sampler, for example FlowSDE() or GDDIM(1.0)")
        return log_ratio * onto(self.zeta * step.h.abs() * kernel.std / kernel.gain.abs(), log_ratio.device)


class StepWeight(ABC):
    """A factor of a step's loss, float64 []."""

    @abstractmethod
    def __call__(self, kernel: Kernel, step: Step) -> Tensor:
        """The factor."""


@dataclass(frozen=True)
class Uniform(StepWeight):
    """1."""

    def __call__(self, kernel: Kernel, step: Step) -> Tensor:
        """1."""
        return torch.ones((), dtype=torch.float64)


@dataclass(frozen=True)
class PerTime(StepWeight):
    """``1 / |dt|``."""

    def __call__(self, kernel: Kernel, step: Step) -> Tensor:
        """``1 / |dt|``."""
        return 1 / step.h.abs()


@dataclass(frozen=True)
class StepLength(StepWeight):
    """``|dt|``: a per-step KL without its ``1 / dt``, as flow_grpo's code has it."""

    def __call__(self, kernel: Kernel, step: Step) -> Tensor:
        """``|dt|``."""
        return step.h.abs()


@dataclass(frozen=True)
class NoiseLevel(StepWeight):
    """``scale * std``."""

    scale: float = 2.25

    def __call__(self, kernel: Kernel, step: Step) -> Tensor:
        """``scale * std``."""
        return self.scale * kernel.std
