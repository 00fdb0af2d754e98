r"""A finite-difference solver of the entropy-regularised Hamilton-Jacobi-Bellman equation, in one and two dimensions.

.. math::
    \beta V = \sup_\pi E_{a \sim \pi}\big[ b \cdot \nabla V + \tfrac12 \operatorname{tr}(\sigma \sigma^T \nabla^2 V) + r
        - \gamma \log \pi(a) \big]

The diffusion is replaced by a jump chain on the nodes with the same mean and covariance per unit time (Kushner & Dupuis
2001, chapter 5): with the policy's averages ``b_i`` and ``S = sigma sigma'`` a node jumps along axis i at the rates

    up, down = max(s_i, |b_i| / (2 h_i)) +- b_i / (2 h_i),     s_i = S_ii / (2 h_i^2) - sum_j |S_ij| / (2 h_i h_j)

and along the diagonal of the sign of S_ij at the rate ``|S_ij| / (2 h_i h_j)`` either way. Rates are never negative, so
the scheme is monotone (it converges: Barles & Souganidis 1991): central differences of order h^2 where noise carries
them, upwind differences of order h elsewhere. A policy's value solves a sparse linear system; a policy is improved node
by node, with the best of ``N(-Q_aa^-1 Q_a, -gamma Q_aa^-1)`` for central and one-sided differences along each axis and
the policy as it is, so values never fall. Averages over actions are exact where b, sigma sigma' and r are quadratic in
the action, which is checked (sigma points, of degree 3).
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from girsanov.control.environments.base import Environment
from girsanov.control.grid_solution import GridSolution
from girsanov.control.lattice import Lattice
from girsanov.errors import GirsanovError

PolicyFunction = Callable[[Tensor], tuple[Tensor, Tensor]]
"""States [N, n] to the mean [N, m] and the covariance [N, m, m] of a policy."""


@dataclass(frozen=True, eq=False)
class Averages:
    """What a policy makes of a problem: averages over its actions at each node.

    Attributes:
        drift: b, [N, n].
        square: S = sigma sigma', [N, n, n].
        reward: r with the entropy, [N].
    """

    drift: Tensor
    square: Tensor
    reward: Tensor


@dataclass(frozen=True, eq=False)
class HJB:
    """An environment on a lattice.

    Attributes:
        environment: whose equation; b, sigma sigma' and r quadratic in the action.
        lattice: one or two axes, wide enough that the edges, where the chain is reflected, do not matter.
        boundary: values [E] at the nodes [E, n] of the edge, in place of reflection.
    """

    environment: Environment
    lattice: Lattice
    boundary: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        n, axes = self.environment.state_dim, len(self.lattice.axes)
        if n != axes or n > 2:
            raise GirsanovError(f"{n} states on {axes} axes: the solver takes 1 or 2 states, and one axis for each")
        self._check_quadratic()

    # ---- policies

    def averages(self, mean: Tensor, covariance: Tensor) -> Averages:
        """Averages over normal actions of mean [N, m] and covariance [N, m, m]."""
        x, m = self.lattice.nodes, mean.shape[1]
        env, root = self.environment, math.sqrt(m) * torch.linalg.cholesky(covariance)
        b, r = torch.zeros_like(x), torch.zeros_like(x[:, 0])
        S = b[:, :, None] * b[:, None]
        for i, sign in itertools.product(range(m), (1, -1)):
            a = mean + sign * root[:, :, i]
            sigma = env.diffusion(x, a)
            b = b + env.drift(x, a) / (2 * m)
            S = S + sigma @ sigma.mT / (2 * m)
            r = r + env.reward(x, a) / (2 * m)
        return Averages(b, S, r + env.entropy / 2 * torch.logdet(2 * math.pi * math.e * covariance))

    def rates(self, means: Averages, strict: bool = True) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """The jumps (offsets) and their rates [N]. Raises GirsanovError if one is negative and ``strict``."""
        h, n = self.lattice.h, len(self.lattice.axes)
        S, b = means.square, means.drift
        cross = S.abs() / (2 * h[:, None] * h)
        own = torch.diagonal(cross, dim1=1, dim2=2)
        s = own - (cross.sum(2) - own)
        if strict and bool((s < -1e-9 * own.max()).any()):
            bad = int((s < -1e-9 * own.max()).any(1).sum())
            raise GirsanovError(
                f"the scheme is not monotone at {bad} of {len(b)} nodes: the noises of the two states are too "
                "correlated there, so choose spacings whose ratio is that of their standard deviations"
            )
        push = b / (2 * h)
        total = torch.maximum(s, push.abs())
        for i in range(n):
            yield self.lattice.unit(i), total[:, i] + push[:, i]
            yield self.lattice.unit(i, -1), total[:, i] - push[:, i]
        for i, j in itertools.combinations(range(n), 2):
            for side in (1, -1):
                rate = cross[:, i, j] * (torch.sign(S[:, i, j]) == side)
                for sign in (1, -1):
                    yield (sign, sign * side), rate

    def hamiltonian(self, means: Averages, V: Tensor) -> Tensor:
        """Averaged reward plus generator applied to the node values V, [N]."""
        out = means.reward.clone()
        for offset, rate in self.rates(means, strict=False):
            out += rate * (V[self.lattice.neighbour(*offset)] - V)
        return out

    # ---- solving

    def evaluate(self, policy: PolicyFunction) -> GridSolution:
        """The solution of any normal policy; it is asked at float64 states. Raises GirsanovError if it is none."""
        mean, covariance = (v.detach().double() for v in policy(self.lattice.nodes))
        N, m = len(self.lattice.nodes), self.environment.action_dim
        if mean.shape != (N, m) or covariance.shape != (N, m, m):
            raise GirsanovError(
                f"the policy returned a mean {list(mean.shape)} and a covariance {list(covariance.shape)} at {N} "
                f"states: return [B, {m}] and [B, {m}, {m}]"
            )
        if not bool(torch.isfinite(mean).all()) or bool(torch.linalg.cholesky_ex(covariance).info.any()):
            raise GirsanovError("the policy's mean must be finite and its covariance positive definite at every node")
        return self._evaluate(mean, covariance)

    def _evaluate(self, mean: Tensor, covariance: Tensor) -> GridSolution:
        from scipy import sparse
        from scipy.sparse.linalg import spsolve

        means = self.averages(mean, covariance)
        N, env = len(mean), self.environment
        inner = torch.ones(N, dtype=torch.bool) if self.boundary is None else ~self.lattice.edge
        rows, columns, values = [], [], []
        for offset, rate in self.rates(means):
            rows.append(torch.arange(N))
            columns.append(self.lattice.neighbour(*offset))
            values.append(torch.where(inner, rate, 0.0))
        place = torch.cat(rows).numpy(), torch.cat(columns).numpy()
        jumps = sparse.coo_matrix((torch.cat(values).numpy(), place), (N, N)).tocsc()
        stay = sparse.diags(env.discount * inner.double().numpy() + (~inner).double().numpy())
        system = stay + sparse.diags(np.asarray(jumps.sum(1)).ravel()) - jumps
        right = means.reward.clone()
        if self.boundary is not None:
            right[~inner] = self.boundary(self.lattice.nodes[~inner])
        V = torch.from_numpy(spsolve(system.tocsc(), right.numpy()))
        return GridSolution(env, self.lattice, V, mean, covariance, means.reward, system)

    def solve(self, start: PolicyFunction | None = None, tolerance: float = 1e-9, limit: int = 200) -> GridSolution:
        """The optimum, by policy iteration until the value moves less than ``tolerance`` of its size.

        Args:
            start: a policy to improve, that of a coarser lattice say (``coarse.policy``); pure noise by default.
            tolerance: relative.
            limit: rounds at most.
        """
        N, m = len(self.lattice.nodes), self.environment.action_dim
        now = self.evaluate(start or (lambda x: (torch.zeros(N, m), torch.eye(m).expand(N, m, m))))
        for _ in range(limit):
            mean, covariance, bounded = self.improve(now)
            better = self._evaluate(mean, covariance)
            change = float((better.V - now.V).abs().max())
            now = better
            if change <= tolerance * (1 + float(now.V.abs().max())):
                break
        else:
            raise GirsanovError(f"policy iteration did not converge in {limit} rounds: widen the lattice or refine it")
        if not bool(bounded.all()):
            raise GirsanovError(
                f"q has no maximum in the action at {int((~bounded).sum())} of {N} nodes: the reward needs a quadratic "
                "cost of every action that outweighs what its noise gains"
            )
        return now

    # ---- improving

    @cached_property
    def _samples(self) -> dict[tuple[int, ...], tuple[Tensor, Tensor, Tensor]]:
        """b, sigma sigma' and r at the actions that determine a quadratic function of the action."""
        m, x = self.environment.action_dim, self.lattice.nodes
        units = [tuple(int(j == i) for j in range(m)) for i in range(m)]
        both = [tuple(a + b for a, b in zip(u, v, strict=True)) for u, v in itertools.combinations(units, 2)]
        points = [(0,) * m, *units, *(tuple(-a for a in u) for u in units), *both]
        return {point: self._at(torch.tensor(point).double().expand(len(x), -1)) for point in points}

    def _at(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, env = self.lattice.nodes, self.environment
        sigma = env.diffusion(x, a)
        return env.drift(x, a), sigma @ sigma.mT, env.reward(x, a)

    def _check_quadratic(self) -> None:
        m, N = self.environment.action_dim, len(self.lattice.nodes)
        for i in range(m):
            a = torch.zeros(N, m, dtype=torch.float64)
            a[:, i] = 1
            runs = zip(*(self._at(k * a) for k in (2, 1, 0, -1)), strict=True)
            for f in runs:
                third = f[0] - 3 * f[1] + 3 * f[2] - f[3]
                if float(third.abs().max()) > 1e-8 * (1 + max(float(g.abs().max()) for g in f)):
                    raise GirsanovError(
                        "the solver needs a drift, a squared noise and a reward that are quadratic in the action: this "
                        "environment's are not"
                    )

    def improve(self, now: GridSolution) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and covariance of a policy that is at each node at least as good for the values of ``now``.

        Third: where q has a maximum in the action (elsewhere the policy stays as it is), bool [N].
        """
        up, down = self.lattice.slopes(now.V)
        curvature = self.lattice.curvature(now.V)
        mean, covariance = now.mean, now.covariance
        best = self.hamiltonian(self.averages(mean, covariance), now.V)
        bounded = torch.zeros(len(best), dtype=torch.bool) if self.boundary is None else self.lattice.edge
        for sides in itertools.product((0, 1, -1), repeat=len(self.lattice.axes)):
            side = torch.tensor(sides)
            p = torch.where(side > 0, up, torch.where(side < 0, down, (up + down) / 2))
            P = curvature - torch.diag_embed(torch.diagonal(curvature, dim1=1, dim2=2) * (side != 0))
            concave, centre, spread = self._maximum(p, P)
            value = self.hamiltonian(self.averages(centre, spread), now.V)
            better = concave & (value > best)
            bounded = bounded | concave
            best = torch.where(better, value, best)
            mean = torch.where(better[:, None], centre, mean)
            covariance = torch.where(better[:, None, None], spread, covariance)
        return mean, covariance, bounded

    def _maximum(self, p: Tensor, P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether q is concave, [N], and mean and covariance of ``exp(q / gamma)`` for slopes p and curvatures P."""
        m = self.environment.action_dim
        q = {k: (b * p).sum(1) + (S * P).sum((1, 2)) / 2 + r for k, (b, S, r) in self._samples.items()}
        zero, eye = (0,) * m, torch.eye(m, dtype=torch.float64)
        units = [tuple(int(j == i) for j in range(m)) for i in range(m)]
        slope = torch.stack([(q[u] - q[tuple(-a for a in u)]) / 2 for u in units], 1)
        cost = torch.diag_embed(torch.stack([2 * q[zero] - q[u] - q[tuple(-a for a in u)] for u in units], 1))
        for (i, u), (j, v) in itertools.combinations(enumerate(units), 2):
            both = tuple(a + b for a, b in zip(u, v, strict=True))
            cost[:, i, j] = cost[:, j, i] = q[u] + q[v] - q[zero] - q[both]
        least = 1e-10 * (1 + q[zero].abs())  # what rounding leaves of no cost at all
        concave = torch.linalg.cholesky_ex(cost - least[:, None, None] * eye).info == 0
        cost = torch.where(concave[:, None, None], cost, eye)
        spread = self.environment.entropy * torch.linalg.inv(cost)
        return concave, torch.linalg.solve(cost, slope[:, :, None])[:, :, 0], (spread + spread.mT) / 2
