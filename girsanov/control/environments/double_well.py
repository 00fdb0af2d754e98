r"""A particle in a double well, to be brought over the hill and kept there.

.. math::
    dX = (X - X^3 + a)\, dt + s\, dB, \qquad r = -\tfrac12 [ w (X - x^*)^2 + c\, a^2 ]

Wells at -1 and 1, a hill at 0; it starts in the left one. Control is affine and its cost quadratic, so the best policy
is ``N(V'(x) / c, gamma / c)`` everywhere, but V' is not affine: it peaks where the particle has to be helped over the
hill. V has no closed form; the reference is the finite-difference solution.

The step follows ``dx = (x - x^3) dt`` exactly, then adds the action and the noise (Lie's splitting, of weak order 1 as
Euler and Maruyama's step is): that one leaves the real line at ``|x| > sqrt(2 / dt)``.
"""

import math
from functools import cached_property

import torch
from torch import Tensor

from girsanov.control.environments.base import Environment, normal
from girsanov.control.grid_solution import GridSolution
from girsanov.control.hjb import HJB
from girsanov.control.lattice import Axis, Lattice
from girsanov.settings import Finite, NonNegative, Positive, settings


@settings
class DoubleWell(Environment):
    """One state, one action.

    Attributes:
        noise: s (length / sqrt(time)).
        target, weight, cost: x*, w and c of the reward.
        discount, entropy, dt: beta, gamma, length of a step.
        start_mean, start_std: of the normal law of the first state.
    """

    noise: Positive = 0.5
    target: Finite = 1.0
    weight: NonNegative = 1.0
    cost: Positive = 1.0
    discount: Positive = 0.5
    entropy: Positive = 0.05
    dt: Positive = 0.05
    start_mean: Finite = -1.0
    start_std: NonNegative = 0.2

    state_dim = 1
    states = ("position",)
    action_dim = 1
    noise_dim = 1

    def drift(self, x: Tensor, a: Tensor) -> Tensor:
        """x - x^3 + a, [B, 1]."""
        return x - x**3 + a

    def diffusion(self, x: Tensor, a: Tensor) -> Tensor:
        """s, [B, 1, 1]."""
        return torch.full_like(x, self.noise)[:, :, None]

    def reward(self, x: Tensor, a: Tensor) -> Tensor:
        """r(x, a), [B]."""
        return (-self.weight / 2 * (x - self.target) ** 2 - self.cost / 2 * a**2)[:, 0]

    def start(self, n: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal states, [n, 1]."""
        return self.start_mean + self.start_std * normal(n, 1, generator, dtype)

    def step(self, x: Tensor, a: Tensor, noise: Tensor) -> Tensor:
        """The state [B, 1] a time dt later."""
        rolled = x * math.exp(self.dt) / torch.sqrt(1 + math.expm1(2 * self.dt) * x**2)
        return rolled + self.dt * a + math.sqrt(self.dt) * self.noise * noise

    def solution(self) -> GridSolution:
        """The finite-difference reference, on 801 points of [-3, 3]; computed once."""
        return self._solution

    @cached_property
    def _solution(self) -> GridSolution:
        return HJB(self, Lattice((Axis(-3.0, 3.0, 801),))).solve()
