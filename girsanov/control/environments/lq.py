r"""Linear-quadratic control of one number by one number, with noise that depends on both.

.. math::
    dX = (A X + B a)\, dt + (C X + D a)\, dB, \qquad r = -( M x^2 / 2 + R x a + N a^2 / 2 + P x + Q a )

The value is ``k2 x^2 / 2 + k1 x + k0`` and the best policy is ``N( ((k2 (B + C D) - R) x + k1 B - Q) / (N - k2 D^2),
gamma / (N - k2 D^2) )`` with

    beta k2 / 2 = -M / 2 + A k2 + C^2 k2 / 2 + (k2 (B + C D) - R)^2 / (2 (N - k2 D^2))
    beta k1 = -P + A k1 + (k2 (B + C D) - R) (k1 B - Q) / (N - k2 D^2)
    beta k0 = (k1 B - Q)^2 / (2 (N - k2 D^2)) + (gamma / 2) log(2 pi gamma / (N - k2 D^2))

found by ``girsanov.control.linear_quadratic``. The noise that the action makes (D) is what exploring costs.
Reference: Wang, Zariphopoulou & Zhou 2020, arXiv:1812.01552, section 4.
"""

import math

import torch
from torch import Tensor

from girsanov.control.environments.base import normal
from girsanov.control.environments.linear import LinearEnvironment
from girsanov.control.linear_quadratic import LinearQuadratic
from girsanov.settings import Finite, NonNegative, Positive, settings


@settings
class LQ(LinearEnvironment):
    """One state, one action, one noise.

    Attributes:
        A, B, C, D: drift and noise.
        M, N, R, P, Q: costs.
        discount, entropy, dt: beta, gamma, length of a step.
        start_mean, start_std: of the normal law of the first state.

    Raises GirsanovError where the optimal value does not exist, with the condition that is violated.
    """

    A: Finite = -1.0
    B: Finite = 0.5
    C: Finite = 0.1
    D: Finite = 1.0
    M: Finite = 2.0
    N: Finite = 2.0
    R: Finite = 1.0
    P: Finite = 1.0
    Q: Finite = 2.0
    discount: Positive = 1.0
    entropy: Positive = 0.1
    dt: Positive = 0.05
    start_mean: Finite = 0.0
    start_std: NonNegative = 1.0

    state_dim = 1
    action_dim = 1
    noise_dim = 1

    def drift(self, x: Tensor, a: Tensor) -> Tensor:
        """A x + B a, [B, 1]."""
        return self.A * x + self.B * a

    def diffusion(self, x: Tensor, a: Tensor) -> Tensor:
        """C x + D a, [B, 1, 1]."""
        return (self.C * x + self.D * a)[:, :, None]

    def reward(self, x: Tensor, a: Tensor) -> Tensor:
        """r(x, a), [B]."""
        on_x = torch.add(torch.mul(x, -self.M / 2), a, alpha=-self.R).sub_(self.P)
        on_a = torch.mul(a, -self.N / 2).sub_(self.Q)
        return torch.addcmul(on_x.mul_(x), on_a, a)[:, 0]

    def start(self, n: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal states, [n, 1]."""
        return self.start_mean + self.start_std * normal(n, 1, generator, dtype)

    def step(self, x: Tensor, a: Tensor, noise: Tensor) -> Tensor:
        """The Euler-Maruyama step, [B, 1], in five passes over the batch."""
        root = math.sqrt(self.dt)
        spread = torch.add(torch.mul(x, root * self.C), a, alpha=root * self.D)
        mean = torch.add(torch.mul(x, 1 + self.dt * self.A), a, alpha=self.dt * self.B)
        return torch.addcmul(mean, spread, noise)

    @property
    def problem(self) -> LinearQuadratic:
        """The problem in homogeneous coordinates, in continuous time."""
        reward = [[self.M, self.P, self.R], [self.P, 0.0, self.Q], [self.R, self.Q, self.N]]
        second = self.start_mean**2 + self.start_std**2
        return LinearQuadratic(
            drift=torch.tensor([[self.A, 0.0, self.B]], dtype=torch.float64),
            noise=torch.tensor([[[self.C, 0.0, self.D]]], dtype=torch.float64),
            reward=-torch.tensor(reward, dtype=torch.float64),
            discount=self.discount,
            entropy=self.entropy,
            start=torch.tensor([[second, self.start_mean], [self.start_mean, 1.0]], dtype=torch.float64),
        )
