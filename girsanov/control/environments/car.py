r"""A car with a weak engine between two valleys: it has to swing to get over the hill.

.. math::
    dp = v\, dt, \qquad dv = [ -U'(p) - \zeta v + a ]\, dt + s\, dB, \qquad U(p) = H (p^2 - 1)^2, \qquad
    r = -\tfrac12 [ w (p - 1)^2 + c\, a^2 ]

Valleys at -1 and 1, a hill of height H at 0 between them, friction zeta; it starts in the left valley and is paid for
being in the right one. A strong push up the hill costs ``c a^2 / 2``; the cheap way out is to swing, pushing along the
velocity (with little noise the way out of a well is the way in run backwards in time: ``a = 2 zeta v``; Freidlin &
Wentzell 1984, chapter 4). The best policy is ``N(dV/dv / c, gamma / c)``; V has no closed form, the reference is the
finite-difference solution. Like Moore's 1990 mountain car, with noise, without walls and with an action of any size.

The step moves the velocity first and the position with the new velocity (symplectic Euler, of weak order 1): the step
of Euler and Maruyama makes energy out of nothing.
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
class Car(Environment):
    """State (position, velocity), action: the force.

    Attributes:
        height, friction, noise: H, zeta (1 / time) and s.
        weight, cost: w and c of the reward.
        discount, entropy, dt: beta, gamma, length of a step.
        start_mean, start_std: of the normal law of the first position; the car starts at rest.
    """

    height: Positive = 0.5
    friction: NonNegative = 0.2
    noise: Positive = 0.3
    weight: NonNegative = 1.0
    cost: Positive = 4.0
    discount: Positive = 0.2
    entropy: Positive = 0.05
    dt: Positive = 0.05
    start_mean: Finite = -1.0
    start_std: NonNegative = 0.1

    state_dim = 2
    states = ("position", "velocity")
    action_dim = 1
    noise_dim = 1

    def acceleration(self, x: Tensor, a: Tensor) -> Tensor:
        """-U'(p) - zeta v + a, [B, 1]."""
        p, v = x[:, :1], x[:, 1:]
        return 4 * self.height * (p - p**3) - self.friction * v + a

    def drift(self, x: Tensor, a: Tensor) -> Tensor:
        """Of position and velocity, [B, 2]."""
        return torch.cat([x[:, 1:], self.acceleration(x, a)], 1)

    def diffusion(self, x: Tensor, a: Tensor) -> Tensor:
        """(0, s), [B, 2, 1]."""
        return torch.stack([torch.zeros_like(a), torch.full_like(a, self.noise)], 1)

    def reward(self, x: Tensor, a: Tensor) -> Tensor:
        """r(x, a), [B]."""
        return -self.weight / 2 * (x[:, 0] - 1) ** 2 - self.cost / 2 * a[:, 0] ** 2

    def start(self, n: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal positions, at rest, [n, 2]."""
        p = self.start_mean + self.start_std * normal(n, 1, generator, dtype)
        return torch.cat([p, torch.zeros_like(p)], 1)

    def step(self, x: Tensor, a: Tensor, noise: Tensor) -> Tensor:
        """The state [B, 2] a time dt later."""
        v = x[:, 1:] + self.dt * self.acceleration(x, a) + math.sqrt(self.dt) * self.noise * noise
        return torch.cat([x[:, :1] + self.dt * v, v], 1)

    def solution(self) -> GridSolution:
        """The finite-difference reference on [-2.4, 2.4] x [-4, 4]; computed once, in seconds."""
        return self._solution

    @cached_property
    def _solution(self) -> GridSolution:
        found = HJB(self, self.lattice(40)).solve()
        for n in (80, 160):
            found = HJB(self, self.lattice(n)).solve(start=found.policy)
        return found

    def lattice(self, n: int) -> Lattice:
        """n intervals of velocity; four times as many of position, which no noise smooths."""
        return Lattice((Axis(-2.4, 2.4, 4 * n + 1), Axis(-4.0, 4.0, n + 1)))
