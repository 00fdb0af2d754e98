r"""Linear-quadratic control in any dimension, with noise that depends on state and action.

.. math::
    dX = (A X + B a + c)\, dt + \sum_j (C_j X + D_j a + s_j)\, dB_j, \qquad
    r = -( \tfrac12 X^T M X + a^T R X + \tfrac12 a^T N a + P \cdot X + Q \cdot a )

The value ``x' K x / 2 + k' x + k_0`` solves the discounted generalised algebraic Riccati equation

    beta K = -M + A' K + K A + sum_j C_j' K C_j + S' (N - sum_j D_j' K D_j)^-1 S,   S = B' K + sum_j D_j' K C_j - R

(``girsanov.control.linear_quadratic``). The default is a damped oscillator pushed by a force whose noise grows with it,
as that of a muscle does (Harris & Wolpert 1998, Nature 394:780): position and velocity, heat in the velocity, and a
target at position 1. References: Rami & Zhou 2000, IEEE TAC 45:1131 (the equation); Wang, Zariphopoulou & Zhou 2020,
arXiv:1812.01552 (with entropy).
"""

import math
from functools import cached_property

import torch
from torch import Tensor

from girsanov.control.environments.base import normal
from girsanov.control.environments.linear import LinearEnvironment
from girsanov.control.linear_quadratic import LinearQuadratic
from girsanov.errors import GirsanovError
from girsanov.settings import Finite, NonNegative, Positive, settings

Vector = tuple[Finite, ...]
Matrix = tuple[Vector, ...]


@settings
class VectorLQ(LinearEnvironment):
    """n states, m actions, k noises; matrices are tuples of rows, and an empty one is zero.

    Attributes:
        A, B, c: drift, [n, n], [n, m], [n].
        C, D, s: noise, [k, n, n], [k, n, m], [k, n].
        M, N, R, P, Q: costs, [n, n], [m, m], [m, n], [n], [m]; M and N symmetric.
        discount, entropy, dt: beta, gamma, length of a step.
        start_mean, start_std: of the independent normal coordinates of the first state, [n].

    Raises GirsanovError where shapes do not fit, or where the optimal value does not exist, with the condition.
    """

    A: Matrix = ((0.0, 1.0), (-1.0, -0.5))
    B: Matrix = ((0.0,), (1.0,))
    c: Vector = ()
    C: tuple[Matrix, ...] = ()
    D: tuple[Matrix, ...] = (((0.0,), (0.4,)), ((0.0,), (0.0,)))
    s: Matrix = ((0.0, 0.0), (0.0, 0.3))
    M: Matrix = ((2.0, 0.0), (0.0, 0.2))
    N: Matrix = ((0.5,),)
    R: Matrix = ()
    P: Vector = (-2.0, 0.0)
    Q: Vector = ()
    discount: Positive = 0.5
    entropy: Positive = 0.1
    dt: Positive = 0.05
    start_mean: Vector = ()
    start_std: tuple[NonNegative, ...] = (1.0, 1.0)

    def __post_init__(self) -> None:
        for name, shape in self._shapes.items():
            self._tensor(name, shape)
        for name in ("M", "N"):
            matrix = self._tensor(name, self._shapes[name])
            if not torch.equal(matrix, matrix.T):
                raise GirsanovError(f"the matrix {name} must be symmetric: give half the sum of it and its transpose")
        super().__post_init__()

    @property
    def state_dim(self) -> int:
        """n, the rows of A."""
        return len(self.A)

    @property
    def action_dim(self) -> int:
        """m, the rows of N."""
        return len(self.N)

    @property
    def noise_dim(self) -> int:
        """k, the length of C, D and s (of the longest, where some are empty)."""
        return max(len(self.C), len(self.D), len(self.s))

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n, m, k = self.state_dim, self.action_dim, self.noise_dim
        noise = {"C": (k, n, n), "D": (k, n, m), "s": (k, n)}
        costs = {"M": (n, n), "N": (m, m), "R": (m, n), "P": (n,), "Q": (m,)}
        return {"A": (n, n), "B": (n, m), "c": (n,), **noise, **costs, "start_mean": (n,), "start_std": (n,)}

    def _tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        value = getattr(self, name)
        if value == ():
            return torch.zeros(shape, dtype=torch.float64)
        try:
            found = torch.tensor(value, dtype=torch.float64)
        except ValueError:
            raise GirsanovError(f"the rows of {name} are not equally long") from None
        if found.shape != shape:
            raise GirsanovError(
                f"the shape of {name} is {list(found.shape)} and must be {list(shape)}: there are {self.state_dim} "
                f"states (rows of A), {self.action_dim} actions (rows of N) and {self.noise_dim} noises"
            )
        return found

    def drift(self, x: Tensor, a: Tensor) -> Tensor:
        """A x + B a + c, [B, n]."""
        return _z(x, a) @ self.problem.drift.T.to(x)

    def diffusion(self, x: Tensor, a: Tensor) -> Tensor:
        """Columns C_j x + D_j a + s_j, [B, n, k]."""
        return torch.einsum("bz,knz->bnk", _z(x, a), self.problem.noise.to(x))

    def reward(self, x: Tensor, a: Tensor) -> Tensor:
        """r(x, a), [B]."""
        z = _z(x, a)
        return ((z @ (self.problem.reward / 2).to(x)) * z).sum(1)

    def step(self, x: Tensor, a: Tensor, noise: Tensor) -> Tensor:
        """The Euler-Maruyama step, [B, n], drift and noises in one product."""
        n = self.state_dim
        moves = _z(x, a) @ self._moves.to(x)
        out = x + moves[:, :n]
        for j in range(self.noise_dim):
            out = torch.addcmul(out, moves[:, (j + 1) * n : (j + 2) * n], noise[:, j : j + 1])
        return out

    @cached_property
    def _moves(self) -> Tensor:
        drift, noise = self.dt * self.problem.drift, math.sqrt(self.dt) * self.problem.noise
        return torch.cat([drift[None], noise]).flatten(0, 1).T

    def start(self, n: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal states, [n, state_dim]."""
        z = normal(n, self.state_dim, generator, dtype)
        shapes = self._shapes
        mean, std = (self._tensor(name, shapes[name]).to(z) for name in ("start_mean", "start_std"))
        return mean + std * z

    @cached_property
    def problem(self) -> LinearQuadratic:
        """The problem in homogeneous coordinates, in continuous time."""
        t = {name: self._tensor(name, shape) for name, shape in self._shapes.items()}
        zero = torch.zeros(1, 1, dtype=torch.float64)
        P, Q, mean = t["P"][:, None], t["Q"][:, None], t["start_mean"][:, None]
        cost = [[t["M"], P, t["R"].T], [P.T, zero, Q.T], [t["R"], Q, t["N"]]]
        second = mean @ mean.T + torch.diag(t["start_std"] ** 2)
        return LinearQuadratic(
            drift=torch.cat([t["A"], t["c"][:, None], t["B"]], 1),
            noise=torch.cat([t["C"], t["s"][:, :, None], t["D"]], 2),
            reward=-torch.cat([torch.cat(row, 1) for row in cost]),
            discount=self.discount,
            entropy=self.entropy,
            start=torch.cat([torch.cat([second, mean], 1), torch.cat([mean.T, zero + 1], 1)]),
        )


def _z(x: Tensor, a: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[:, :1]), a], 1)
