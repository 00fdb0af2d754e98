r"""What is known of a control problem: the value of a policy, its q, the policy itself.

.. math::
    \beta V(x) = E_{a \sim \pi}[ H(x, a) - \gamma \log \pi(a | x) ], \quad
    H = b \cdot \nabla V + \tfrac12 \operatorname{tr}(\sigma \sigma^T \nabla^2 V) + r, \quad
    q(x, a) = H(x, a) - \beta V(x)

Symbols: beta discount (1 / time), gamma entropy weight, b drift, sigma diffusion, r reward rate. For the policy that V
belongs to ``E_pi[q - gamma log pi] = 0``, and the best policy is ``exp(q / gamma)``. References: Zhao et al. 2023,
arXiv:2305.18901; Jia & Zhou 2023, arXiv:2207.00713.
"""

from abc import ABC, abstractmethod

from torch import Tensor


class Solution(ABC):
    """The value, q and policy of a control problem; x is [B, n], a is [B, m]; answers are as x in dtype and device."""

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """V(x), [B]."""

    @abstractmethod
    def gradient(self, x: Tensor) -> Tensor:
        """grad V(x), [B, n]."""

    @abstractmethod
    def q(self, x: Tensor, a: Tensor) -> Tensor:
        """The advantage rate q(x, a), [B] (reward per unit time)."""

    @abstractmethod
    def policy(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B, m] and covariance [B, m, m] of the policy."""
