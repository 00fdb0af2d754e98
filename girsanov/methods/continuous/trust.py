r"""A trust region for continuous-time policies: the square root of the KL over time, with an adaptive weight.

For two policies of one sampler, with L the surrogate ``J(pi) + E_pi int E_{pi'} q^pi dt``,

.. math:: |J(\pi') - L_\pi(\pi')| \le \int 2 \sup_x |E_{\pi'} q^\pi(t, x)|\; TV(p_t^{\pi'}, p_t^\pi)\, dt, \qquad
          TV \le \sqrt{\tfrac12 KL(path)}

by the performance difference and by Girsanov and Pinsker; the path KL of a chain is the sum of its kernels' KL. So the
natural penalty is ``C sqrt(KL)``. In the loss the root is taken sample by sample, ``C E[sqrt(sum_k KL_k)]``, so that a
micro-batch needs to know nothing of the others (by Jensen it is at most the root of the mean), with the gradient of a
root at hand, ``sum_k KL_k / (2 sqrt(sum_j KL_j))``. What is held at ``delta`` is the quantity of the bound: at the next
rollout, under the new policy, ``D = sqrt(E sum_k KL_k)`` from the policy of the rollout before, and

.. math:: D > (1 + \epsilon) \delta:\; C \leftarrow C \cdot factor, \qquad
          D < (1 - \epsilon) \delta:\; C \leftarrow C / factor

The penalty acts between the updates of one batch: with a single update a batch the policies are equal and it is 0.

References: Zhao et al. 2025, arXiv:2502.01819 (the bound; the form here was derived); Zhao et al. 2023,
arXiv:2305.18901 (CPPO: the root, the adaptive rule).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.adaptive import adapted
from girsanov.errors import GirsanovError
from girsanov.methods.base import State

TINY = 1e-12
"""Added to a sum of KL below its root: equal policies have the gradient 0, not 0 / 0."""


class TrustRegion(ABC):
    """A penalty between updates, and how its weight moves."""

    @abstractmethod
    def start(self) -> float:
        """The first weight C."""

    @abstractmethod
    def slope(self, weight: float, total: Tensor) -> Tensor:
        """What a step's KL is multiplied with, [B], from ``sum_k KL_k`` [B] of each sample: the penalty's gradient."""

    @abstractmethod
    def adapt(self, weight: float, mean_kl: float) -> float:
        """The next weight, after ``E sum_k KL_k`` between the policies of two rollouts was seen."""


@dataclass(frozen=True)
class SquareRootKL(TrustRegion):
    """``C sqrt(KL)``, adaptive.

    Attributes:
        delta: where the root is held.
        weight: C at first.
        factor: what C is multiplied or divided with.
        slack: epsilon.
        least, most: where C stays.
    """

    delta: float = 0.5
    weight: float = 1.0
    factor: float = 1.5
    slack: float = 0.1
    least: float = 1e-4
    most: float = 1e4

    def __post_init__(self) -> None:
        if not (self.delta > 0 and self.weight > 0 and self.factor > 1 and 0 <= self.slack < 1):
            raise GirsanovError(
                f"a trust region needs delta > 0, weight > 0, factor > 1 and slack in [0, 1), not {self}"
            )

    def start(self) -> float:
        """C at first."""
        return self.weight

    def slope(self, weight: float, total: Tensor) -> Tensor:
        """``C / (2 sqrt(sum KL))``."""
        return 0.5 * weight / (total + TINY).sqrt()

    def adapt(self, weight: float, mean_kl: float) -> float:
        """The rule of the module's docstring."""
        distance = max(mean_kl, 0.0) ** 0.5
        bounds = {"least": self.least, "most": self.most}
        return adapted(weight, distance, self.delta, slack=self.slack, factor=self.factor, **bounds)


@dataclass(frozen=True)
class LinearKL(TrustRegion):
    """``C KL``, with the same rule: for comparison.

    Attributes:
        delta: where the root of the KL is held.
        weight: C at first.
        factor, slack: as in ``SquareRootKL``.
    """

    delta: float = 0.5
    weight: float = 1.0
    factor: float = 1.5
    slack: float = 0.1

    def __post_init__(self) -> None:
        SquareRootKL(self.delta, self.weight, self.factor, self.slack)

    def start(self) -> float:
        """C at first."""
        return self.weight

    def slope(self, weight: float, total: Tensor) -> Tensor:
        """``C``."""
        return torch.full_like(total, weight)

    def adapt(self, weight: float, mean_kl: float) -> float:
        """As ``SquareRootKL``."""
        return SquareRootKL(self.delta, self.weight, self.factor, self.slack).adapt(weight, mean_kl)


def moving(region: TrustRegion) -> State:
    """The state of a trust region at iteration 0."""
    return {"trust_weight": region.start(), "trust_distance": 0.0}


TRUST: dict[str, type[TrustRegion]] = {"sqrt-kl": SquareRootKL, "linear-kl": LinearKL}
"""Every trust region by name."""
