r"""Deterministic control (ODE-AM): the optimum is a proximal map of the end point, never the tilted law.

With ``v = v_ref + u``, cost ``(lam / 2) int |u|^2 dt`` and a velocity that is affine in the state, the end point is ``z
+ int Phi u dt``, z the untuned end point and Phi the Jacobian of the untuned flow from t to the end. The cheapest
controls that reach ``z_1`` cost ``(lam / 2) (z_1 - z)^T G^{-1} (z_1 - z)`` with ``G = int Phi Phi^T dt``, so for any
reward

.. math:: x_{end} = \arg\min_{z_1} \tfrac{\lambda}{2} (z_1 - z)^T G^{-1} (z_1 - z) - r(z_1), \qquad
    u^*(t) = \Phi^T \nabla r(x_{end}) / \lambda

For the quadratic reward ``x_end = (I + G A / lam)^{-1} (z + G b / lam)``. Discretely the same holds to rounding: the
end point is affine in the stage controls, ``z + sum_j B_j u_j``, a stage costs ``w_j lam |u_j|^2 / 2``, and ``G = sum_j
B_j B_j^T / w_j``. The maps B_j are read off the solver's own stages, so Euler, DDIM and Heun (two controls a step) are
one case. A truncated window sums over its steps only.

References: arXiv:2605.06583 (deterministic adjoint matching); arXiv:2512.05116, appendix A (deterministic control of
    flows); the proximal form is derived here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.models import Model, velocity
from girsanov.problems.laws import Gaussian
from girsanov.problems.moments import prior_moments, probes, read_affine, repeat
from girsanov.problems.rewards import QuadraticReward
from girsanov.processes import Process, as_time
from girsanov.samplers.base import Sampler
from girsanov.types import Cond


def prox(reward: QuadraticReward, G: Tensor, lam: float, z: Tensor) -> Tensor:
    """``argmin_y (lam / 2) (y - z)^T G^{-1} (y - z) - r(y)`` for end points z [B, d] and G [d, d] (may be singular)."""
    mix = torch.eye(len(G), dtype=torch.float64) + G @ reward.A / _positive(lam)
    return torch.linalg.solve(mix, (z + reward.b @ G.mT / lam).mT).mT


def _positive(lam: float) -> float:
    if not lam > 0:
        raise GirsanovError(f"the weight of a running cost must be positive, not {lam}")
    return lam


def _prox_law(reward: QuadraticReward, G: Tensor, lam: float, untuned: Gaussian) -> Gaussian:
    mix = torch.linalg.inv(torch.eye(len(G), dtype=torch.float64) + G @ reward.A / _positive(lam))
    cov = mix @ untuned.cov @ mix.mT
    return Gaussian(mix @ (untuned.mean + G @ reward.b / lam), 0.5 * (cov + cov.mT))


@dataclass(frozen=True)
class Flow:
    """The probability flow of Gaussian data in continuous time: ``Phi(t) = C^{1/2} (alpha^2 C + sigma^2)^{-1/2}``.

    Attributes:
        law: the data.
        process: the noising process; the running cost is in its velocity and its time.
    """

    law: Gaussian
    process: Process

    def jacobian(self, t: float | Tensor) -> Tensor:
        """``Phi(t) = d x_end / d x_t``, [..., d, d]."""
        c, lam, basis = self.process(t), self.law.eigenvalues[0], self.law.eigenvectors[0]
        root = (lam / (c.alpha.unsqueeze(-1) ** 2 * lam + c.sigma.unsqueeze(-1) ** 2)).sqrt()
        return torch.einsum("ij,...j,kj->...ik", basis, root, basis)

    def end(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Untuned end point of states x [B, d] at time t []."""
        return self.law.mean + (x - self.process(t).alpha * self.law.mean) @ self.jacobian(t).mT

    def integral(self, of: Callable[[Tensor], Tensor], window: float = 1.0, panels: int = 64) -> Tensor:
        """``int_0^window of(t) dt`` by Gauss-Legendre rules of 16 nodes; ``of`` maps times [n] to [n, ...]."""
        nodes, weights = np.polynomial.legendre.leggauss(16)
        h = float(as_time(window)) / panels
        t = torch.from_numpy((np.arange(panels)[:, None] + 0.5 + 0.5 * nodes).ravel() * h)
        w = torch.from_numpy(np.tile(0.5 * h * weights, panels))
        return torch.tensordot(w, of(t), 1)

    def gramian(self, window: float = 1.0) -> Tensor:
        """``G = int_0^window Phi Phi^T dt`` [d, d]; one-dimensional flow: ``S arctan(window / (S (1 - window)))``."""
        return self.integral(lambda t: self.jacobian(t) @ self.jacobian(t).mT, window)

    def law_of(self, reward: QuadraticReward, lam: float, window: float = 1.0) -> Gaussian:
        """End law of the tuned flow whose control acts in the last ``window`` of time."""
        return _prox_law(reward, self.gramian(window), lam, self.law)

    def control(self, reward: QuadraticReward, lam: float, x: Tensor, t: float) -> Tensor:
        """Optimal velocity control ``u*(x, t)`` in process time (data at 0), [B, d]: what is added to the velocity.

        Sampling runs against t, so the sign is that of ``-dx/dt``: the control lowers the velocity where the reward
        pulls up.
        """
        end = prox(reward, self.gramian(t), lam, self.end(x, t))
        return -(reward.b - end @ reward.A) @ self.jacobian(t) / lam

    def power_shift(self, b: Tensor, lam: float, q: float, window: float = 1.0) -> Tensor:
        """Shift [d] of every end point for the linear reward ``b^T x`` and the running cost ``(lam / q) |u|^q``."""
        if not q > 1:
            raise GirsanovError(f"a power cost needs q > 1, not {q}")

        def rate(t: Tensor) -> Tensor:
            phi = self.jacobian(t)
            p = torch.einsum("nij,i->nj", phi, b)
            size = p.norm(dim=1, keepdim=True)
            return torch.einsum("nij,nj->ni", phi, p / size * (size / _positive(lam)) ** (1 / (q - 1)))

        return self.integral(rate, window)


@dataclass(frozen=True)
class DiscreteFlow:
    """A deterministic solver on a grid as an affine function of its start and its stage controls.

    Attributes:
        start: moments of the start, [d] and [d, d].
        M, c: untuned end point ``z = M x_T + c``.
        B: effect of each controlled stage, in velocity, on the end point, [J, d, d].
        weight: share of ``int dt`` of each controlled stage, [J].
        step: grid index of each controlled stage, J entries.
    """

    start: tuple[Tensor, Tensor]
    M: Tensor
    c: Tensor
    B: Tensor
    weight: Tensor
    step: tuple[int, ...]

    @property
    def gramian(self) -> Tensor:
        """``G = sum_j B_j B_j^T / w_j``, [d, d]."""
        return torch.einsum("jik,jlk,j->il", self.B, self.B, 1 / self.weight)

    def end(self, x_T: Tensor) -> Tensor:
        """Untuned end points of starts [B, d]."""
        return x_T @ self.M.mT + self.c

    def law(self, reward: QuadraticReward, lam: float) -> Gaussian:
        """End law of the optimally tuned solver."""
        mean, cov = self.start
        return _prox_law(reward, self.gramian, lam, Gaussian(self.M @ mean + self.c, self.M @ cov @ self.M.mT))

    def controls(self, reward: QuadraticReward, lam: float, x_T: Tensor) -> tuple[Tensor, Tensor]:
        """Optimal end points [B, d] and stage controls ``u_j = B_j^T grad r / (lam w_j)``, [J, B, d], of starts x_T."""
        end = prox(reward, self.gramian, lam, self.end(x_T))
        pull = (reward.b - end @ reward.A) / lam
        return end, torch.einsum("jik,bi,j->jbk", self.B, pull, 1 / self.weight)


@torch.no_grad()
def discrete_flow(
    model: Model, sampler: Sampler, grid: Grid, last: int | None = None, cond: Cond | None = None
) -> DiscreteFlow:
    """Reads the maps of a deterministic solver on an affine model, by probing its stages.

    Args:
        model: exact or tuned, float64.
        sampler: a deterministic single-step solver (Euler, Heun, DDIM).
        grid: the times.
        last: how many steps at the data end carry a control; None is all.
        cond: the condition, one sample.

    Raises:
        GirsanovError: a stochastic or multistep sampler, or a network that is not affine.
    """
    d, n = torch.Size(model.shape).numel(), len(grid)
    window = range(n - (n if last is None else last), n)
    starts = probes(d)
    # Two rows of probes a stage are enough room for any solver here; unused ones stay at the origin.
    x = torch.cat([starts, torch.zeros(2 * len(window) * d, d, dtype=torch.float64)])
    batch, weights, owners = repeat(cond, len(x)), list[float](), list[int]()
    for step in grid:
        dialogue = sampler.stages(model, x.view(-1, *model.shape), step)
        stage = next(dialogue)
        while True:
            v = velocity(model, stage.x, stage.t, batch).flatten(1)
            if step.i in window:
                rows = len(starts) + len(weights) * d + torch.arange(d)
                v[rows, torch.arange(d)] += 1.0
                weights, owners = [*weights, float(stage.weight)], [*owners, step.i]
            try:
                stage = dialogue.send(v.view_as(stage.x))
            except StopIteration as end:
                x = end.value.flatten(1)
                break
    M, c = read_affine(starts, x[: len(starts)])
    B = (x[len(starts) :] - c)[: len(weights) * d].view(len(weights), d, d).mT
    return DiscreteFlow(prior_moments(model), M, c, B, torch.tensor(weights, dtype=torch.float64), tuple(owners))
