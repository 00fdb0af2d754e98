r"""Discounted linear-quadratic control with noise that depends on state and action, solved exactly.

.. math::
    dX = (A X + B a + c)\, dt + \sum_j (C_j X + D_j a + s_j)\, dB_j, \qquad r = \tfrac12 z^T \mathcal R z, \quad
    z = (x, 1, a)

Everything is a quadratic form in z. With ``y = (x, 1)``, ``V = y' V y / 2`` and the rows F of the drift and G_j of the
noise (their row for the 1 is zero), the advantage rate of the chain that Euler-Maruyama steps of length dt make is

.. math::
    q(x, a) = \tfrac1{dt}( r\, dt + \delta E V(X') - V ) = \tfrac12 z^T \Big[ \mathcal R
        + \delta ( E^T V F + F^T V E + \sum_j G_j^T V G_j + dt\, F^T V F ) - \tfrac{1 - \delta}{dt} E^T V E \Big] z,

``E z = y``, ``delta = exp(-beta dt)``; dt = 0 (delta = 1, the last factor beta) is continuous time: one formula for
both. For a policy ``a ~ N(Theta y, S)`` the average over a is a linear map L on symmetric matrices:

    value        L[V] + (the averaged reward with the entropy) = 0
    occupation   L*[Y] + E y_0 y_0' = 0,   Y = int e^(-beta t) E y y' dt = [[L2, L1], [L1', L0]]
    gradient     d objective / d Theta = (Q T Y)_a,   d objective / d S = (Q_aa + gamma S^-1) L0 / 2

with Q the matrix of q and ``T y = (y, Theta y)``. The value exists if all eigenvalues l of L decay (``Re l < 0``;
``|1 + dt l| < 1`` for the chain). In one dimension that says ``2 (A + B th) + (C + D th)^2 < beta``. The best policy
``Theta = -Q_aa^-1 Q_ay``, ``S = -gamma Q_aa^-1`` is found by policy iteration (Newton's method for the generalised
Riccati equation; Kleinman 1968), from a discount so large that doing nothing is admissible down to the one asked for.

References: Wang, Zariphopoulou & Zhou 2020, arXiv:1812.01552; Zhao et al. 2023, arXiv:2305.18901.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from girsanov.control.affine import AffinePolicy, Occupation, form, homogeneous, positive, symmetric
from girsanov.control.solution import Solution
from girsanov.errors import GirsanovError

TOLERANCE = 1e-13
"""Relative change of the policy at which policy iteration has converged."""


@dataclass(frozen=True, eq=False)
class LinearQuadratic:
    """A problem in homogeneous coordinates z = (x, 1, a); float64.

    Attributes:
        drift: [n, n + 1 + m], ``(A, c, B)``.
        noise: [k, n, n + 1 + m], ``(C_j, s_j, D_j)``.
        reward: symmetric [n + 1 + m, n + 1 + m], ``r = z' reward z / 2``.
        discount, entropy: beta and gamma.
        start: [n + 1, n + 1], ``E y_0 y_0'``.
        dt: the step of the Euler-Maruyama chain, or 0 for continuous time.
    """

    drift: Tensor
    noise: Tensor
    reward: Tensor
    discount: float
    entropy: float
    start: Tensor
    dt: float = 0.0

    @property
    def n(self) -> int:
        """Size of the state."""
        return self.drift.shape[0]

    @property
    def m(self) -> int:
        """Size of the action."""
        return self.drift.shape[1] - self.n - 1

    def at(self, dt: float) -> "LinearQuadratic":
        """The same problem as a chain of steps of length dt."""
        return dataclasses.replace(self, dt=dt)

    def generator(self, V: Tensor) -> Tensor:
        """Matrix on z of ``(delta E V(X') - V) / dt`` (generator less discount at dt = 0), for V [*, n + 1, n + 1]."""
        n, delta = self.n, math.exp(-self.discount * self.dt)
        rate = -math.expm1(-self.discount * self.dt) / self.dt if self.dt else self.discount
        along = V[..., :n] @ self.drift  # E' V F, its rows for y
        K = V[..., :n, :n]
        out = self.dt * self.drift.T @ K @ self.drift + sum(G.T @ K @ G for G in self.noise)
        out[..., : n + 1, :] += along
        out[..., : n + 1] += along.mT
        out = delta * out
        out[..., : n + 1, : n + 1] -= rate * V
        return out

    def q_matrix(self, V: Tensor) -> Tensor:
        """Matrix Q of ``q = z' Q z / 2`` for the value matrix V."""
        return self.reward + self.generator(V)

    def lift(self, policy: AffinePolicy) -> Tensor:
        """T of ``T y = (y, Theta y)``, [n + 1 + m, n + 1]."""
        return torch.cat([torch.eye(self.n + 1).double(), torch.cat([policy.slope, policy.offset[:, None]], 1)])

    def average(self, Q: Tensor, policy: AffinePolicy) -> Tensor:
        """Matrix on y of the average over the policy's actions of ``z' Q z``, for Q [*, n + 1 + m, n + 1 + m]."""
        T = self.lift(policy)
        out = T.T @ Q @ T
        out[..., -1, -1] += (Q[..., self.n + 1 :, self.n + 1 :] * policy.covariance).sum((-1, -2))
        return out

    @cached_property
    def basis(self) -> Tensor:
        """An orthonormal basis of the symmetric matrices of y, [p, n + 1, n + 1], p = (n + 1)(n + 2) / 2."""
        i, j = torch.triu_indices(self.n + 1, self.n + 1)
        units = torch.zeros(len(i), self.n + 1, self.n + 1, dtype=torch.float64)
        units[torch.arange(len(i)), i, j] = units[torch.arange(len(i)), j, i] = 0.5**0.5
        units[i == j] *= 2**0.5
        return units

    def operator(self, policy: AffinePolicy) -> Tensor:
        """The linear map L of a policy on symmetric matrices of y, in ``basis``, [p, p]."""
        images = self.average(self.generator(self.basis), policy)
        return self.basis.flatten(1) @ images.flatten(1).T

    def growth(self, policy: AffinePolicy) -> float:
        """By how much the discounted second moment grows per unit time; below 0 the value of the policy exists."""
        eigenvalues = torch.linalg.eigvals(self.operator(policy))
        if self.dt == 0:
            return float(eigenvalues.real.max())
        return math.log(float((1 + self.dt * eigenvalues).abs().max())) / self.dt

    def evaluate(self, policy: AffinePolicy) -> "LQSolution":
        """Value, q and occupation of a policy. Raises GirsanovError where it has no value, with the condition."""
        m, n = self.m, self.n
        shapes = [tuple(v.shape) for v in (policy.slope, policy.offset, policy.covariance)]
        if shapes != [(m, n), (m,), (m, m)]:
            raise GirsanovError(
                f"a policy of slope, offset and covariance of shapes {shapes} does not fit a problem with {n} states "
                f"and {m} actions: it needs {[(m, n), (m,), (m, m)]}"
            )
        if not positive(policy.covariance):
            raise GirsanovError("the covariance of the policy must be symmetric and positive definite")
        growth = self.growth(policy)
        if not growth < 0:
            raise GirsanovError(
                f"this policy has no value: the state's second moment grows at rate {growth + self.discount:.4g}, "
                f"which must be below the discount {self.discount:.4g} (in one dimension 2 (A + B slope) + "
                f"(C + D slope)^2 < discount{', for small steps' if self.dt else ''})"
            )
        earned = self.average(self.reward, policy)
        earned[-1, -1] += self.entropy * torch.logdet(2 * math.pi * math.e * policy.covariance)
        basis = self.basis.flatten(1)
        V = torch.linalg.solve(self.operator(policy), -basis @ earned.flatten()) @ basis
        return LQSolution(self, policy, V.reshape(n + 1, n + 1))

    def improve(self, V: Tensor) -> AffinePolicy:
        """The policy ``exp(q / gamma)``. Raises GirsanovError where q has no maximum in a."""
        Q, n = self.q_matrix(V), self.n
        cost = -Q[n + 1 :, n + 1 :]
        if not positive(cost):
            raise GirsanovError(
                "the optimal value does not exist: N - sum_j D_j' K D_j, the cost of the action less what its noise "
                "gains, with K the curvature of the value, must be positive definite: raise N or M"
            )
        rows = torch.linalg.solve(cost, Q[n + 1 :, : n + 1])
        return AffinePolicy(rows[:, :n], rows[:, n], self.entropy * symmetric(torch.linalg.inv(cost)))

    def optimum(self) -> "LQSolution":
        """The best policy and its value. Raises GirsanovError where there is none."""
        m, n = self.m, self.n
        policy = AffinePolicy(torch.zeros(m, n).double(), torch.zeros(m).double(), torch.eye(m).double())
        discount = max(self.discount, self.discount + 1.25 * self.growth(policy))
        while True:
            problem = dataclasses.replace(self, discount=discount)
            policy = problem.iterate(policy)
            if discount == self.discount:
                return problem.evaluate(policy)
            # the best policy at this discount is admissible at some lower ones: go half of the way
            lower = max(self.discount, discount + problem.growth(policy) / 2)
            if discount - lower < 1e-5 * discount:
                raise GirsanovError(
                    f"the value {f'in steps of dt = {self.dt:.4g} ' if self.dt else ''}does not exist at discount "
                    f"{self.discount:.4g}: no feedback was found that keeps the growth of the state's second moment "
                    f"below it (the least is about {discount:.4g}); raise the discount, or "
                    f"{'lower dt' if self.dt else 'the damping -A'}"
                )
            discount = lower

    def iterate(self, policy: AffinePolicy) -> AffinePolicy:
        """Policy iteration from an admissible policy until it does not move."""
        for _ in range(100):
            better = self.improve(self.evaluate(policy).V)
            if not self.growth(better) < 0:
                raise GirsanovError(
                    "the optimal value does not exist: the better a policy, the faster the state grows, because the "
                    "cost [[M, R'], [R, N]] of state and action is not positive definite; raise M or N"
                )
            pairs = [
                (better.slope, policy.slope),
                (better.offset, policy.offset),
                (better.covariance, policy.covariance),
            ]
            policy = better
            if all(float((a - b).abs().max()) <= TOLERANCE * (1 + float(a.abs().max())) for a, b in pairs):
                break
        return policy


@dataclass(frozen=True, eq=False)
class LQSolution(Solution):
    """Value, q and occupation of one affine policy; ``evaluate`` gives those of another.

    Attributes:
        problem: what is solved, in continuous time or as a chain.
        affine: the policy that V belongs to.
        V: ``V(x) = y' V y / 2``, [n + 1, n + 1].
    """

    problem: LinearQuadratic
    affine: AffinePolicy
    V: Tensor

    @cached_property
    def Q(self) -> Tensor:
        """``q(x, a) = z' Q z / 2``, [n + 1 + m, n + 1 + m]."""
        return self.problem.q_matrix(self.V)

    def value(self, x: Tensor) -> Tensor:
        """V(x), [B]."""
        return form(self.V, homogeneous(x)).to(x)

    def gradient(self, x: Tensor) -> Tensor:
        """grad V(x), [B, n]."""
        return (homogeneous(x) @ self.V.to(x.device))[:, : self.problem.n].to(x)

    def q(self, x: Tensor, a: Tensor) -> Tensor:
        """q(x, a), [B], of the policy ``affine``."""
        return form(self.Q, torch.cat([homogeneous(x), a.double()], 1)).to(x)

    def policy(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B, m] and covariance [B, m, m]."""
        return self.affine.mean(x), self.affine.covariance.to(x).expand(len(x), -1, -1)

    def evaluate(self, policy: AffinePolicy) -> "LQSolution":
        """The solution of another policy."""
        return self.problem.evaluate(policy)

    @cached_property
    def objective(self) -> float:
        """``E V(X_0)`` over the problem's start."""
        return float((self.V * self.problem.start).sum() / 2)

    @cached_property
    def occupation(self) -> Occupation:
        """Moments of the discounted occupation measure from the problem's start."""
        n, basis = self.problem.n, self.problem.basis.flatten(1)
        y = torch.linalg.solve(self.problem.operator(self.affine).T, -basis @ self.problem.start.flatten())
        Y = (y @ basis).reshape(n + 1, n + 1)
        return Occupation(Y[n, n], Y[:n, n], Y[:n, :n])

    @cached_property
    def policy_gradient(self) -> AffinePolicy:
        """The derivative of ``objective`` in slope [m, n], offset [m] and covariance [m, m]."""
        n, Y = self.problem.n, self.occupation.matrix
        rows = (self.Q @ self.problem.lift(self.affine) @ Y)[n + 1 :]
        spread = self.Q[n + 1 :, n + 1 :] + self.problem.entropy * torch.linalg.inv(self.affine.covariance)
        return AffinePolicy(rows[:, :n], rows[:, n], spread * Y[n, n] / 2)
