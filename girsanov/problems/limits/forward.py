r"""Where forward-process methods end: samples of the policy are noised, and a velocity is regressed on them.

At its fixed point a method's velocity v obeys, at every time, for every feature phi of the noised samples,

.. math:: E[\, w\, (v - u)\, \phi(x_t)] + \kappa\, E[(v - v_{ref})\, \phi(x_t)] = 0

with x_0 from the policy itself and a signed weight w: ``w = c (r - E r)`` for the linear members and ``w = e^{\tau c (r
- E r)}`` for reward-weighted matching, c the scale of the advantage (``scales.py``). Only ``kappa / c`` matters:

===========  ========================  ===========  ========================  ===========  ============================
member       kappa of the equation     member       kappa of the equation     member       kappa of the equation
===========  ========================  ===========  ========================  ===========  ============================
NFT          ``kappa``                 RAM          ``beta``                  CRD          ``kappa / 2``
FPO          ``kappa``                 RVM          ``b / scale``             ORW          ``kappa``, exponential w
===========  ========================  ===========  ========================  ===========  ============================

In the class of affine velocities (Gaussian data, ``phi = (1, x_t)``) all moments are closed forms. With y = (1, x_t, u)
and ``C = Cov(x_0, y)``,

.. math:: E[(r - E r)\, y y^T] = \bar y\, (g^T C) + (g^T C)^T\, \bar y^T - C^T A\, C, \qquad g = b - A\, E x_0

and ``E[e^{..} y y^T]`` is Z times the moment under the tilted samples. The velocity gives the next samples (the
sampler's exact end law), and the fixed point of the two is found by Newton's method. For a linear reward it is the
velocity of the law tilted with ``beta = kappa / c``, up to the solver's own error. For a curved reward it is the fixed
point of affine velocities, no tilted law: regression sees ``E[A | x_t] (E[u | x_t] - v)`` besides the covariance.

It attracts while ``E[(w + kappa) phi phi^T]`` is positive: near the data and for a linear reward its eigenvalues are
``kappa +- c std(r)``, so with kappa below the spread of the advantages, samples worse than average push harder than the
reference pulls. ORW-CFM-W2 with kappa = 0 has no fixed point (it collapses, round by round). Huber weights,
self-normalised errors, DGPO's gate and clipped rewards have no closed moments here.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from girsanov.methods.forward import CRD, FPO, ORW, RAM, RVM, DiffusionNFT, Plain, VelocityError
from girsanov.methods.forward.base import ForwardMethod
from girsanov.models import velocity
from girsanov.problems.laws import Gaussian
from girsanov.problems.limits.problem import GaussianProblem
from girsanov.problems.limits.scales import reward_std, signal_scale
from girsanov.problems.moments import end_law, probes, read_affine
from girsanov.problems.recursions import Limit, corrected_model
from girsanov.problems.rewards import log_partition, tilt
from girsanov.processes import Process


@dataclass(frozen=True)
class Anchor:
    """The equation a member solves.

    Attributes:
        kappa: pull of the reference.
        tau: None for a weight linear in the advantage, the inverse temperature of an exponential one otherwise.
    """

    kappa: float
    tau: float | None = None


def anchor(method: ForwardMethod) -> Anchor | None:
    """The equation of a method, or None if it is not one of these."""
    match method:
        case DiffusionNFT(error=VelocityError()):
            return Anchor(method.kappa)
        case CRD(error=VelocityError()):
            return Anchor(method.kappa / 2)
        case RAM():
            return Anchor(method.beta)
        case RVM():
            return Anchor(method.b / method.scale)
        case FPO(shape=Plain()):
            return Anchor(method.kappa)
        case ORW():
            return Anchor(method.kappa, method.tau)
        case _:
            return None


def joint(law: Gaussian, process: Process, ts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [K, m] and covariance [K, m, m] of ``y = (1, x_t, u)`` at K times, and ``Cov(x_0, y)`` [K, d, m]."""
    c, one, zero = process(ts), torch.eye(law.d, dtype=torch.float64), torch.zeros(len(ts), 1, law.d)

    def stack(now: Tensor, rate: Tensor) -> Tensor:
        return torch.cat([zero.double(), now.view(-1, 1, 1) * one, rate.view(-1, 1, 1) * one], 1)

    data, noise = stack(c.alpha, c.d_alpha), stack(c.sigma, c.d_sigma)
    mean = data @ law.mean
    mean[:, 0] = 1.0
    return mean, data @ law.cov @ data.mT + noise @ noise.mT, law.cov @ data.mT


def outer(a: Tensor, b: Tensor) -> Tensor:
    """``a b^T`` for K pairs of vectors [K, m]."""
    return a.unsqueeze(2) * b.unsqueeze(1)


def weighted(law: Gaussian, problem: GaussianProblem, ts: Tensor, c: float, tau: float | None) -> Tensor:
    """``E[w y y^T]`` [K, m, m] for samples of a law."""
    reward = problem.reward
    if tau is not None:
        beta = 1 / (tau * c)
        mean, cov, _ = joint(_one(tilt(law, reward, beta)), problem.process, ts)
        log_z = log_partition(law, reward, beta) - reward.expected(law.mean, law.cov) / beta
        return log_z.exp() * (cov + outer(mean, mean))
    mean, _, C = joint(law, problem.process, ts)
    pull = (reward.b - reward.A @ law.mean) @ C
    return c * (outer(mean, pull) + outer(pull, mean) - C.mT @ reward.A @ C)


def _one(law: object) -> Gaussian:
    assert isinstance(law, Gaussian)
    return law


@dataclass(frozen=True)
class Response:
    """What regression on samples of a law gives: corrections ``slope x + shift`` at every step's start.

    Attributes:
        slopes, shifts: [K, d, d] and [K, d].
        curvature: the least eigenvalue of ``E[(w + kappa) phi phi^T]`` over the steps, features standardised.
    """

    slopes: Tensor
    shifts: Tensor
    curvature: float


def reference(problem: GaussianProblem, ts: Tensor) -> Tensor:
    """The untuned velocity ``phi base`` at K times: base [K, 1 + d, d]."""
    model, points = problem.law.model(problem.process), probes(problem.law.d)
    maps = [read_affine(points, velocity(model, points, t.expand(len(points)))) for t in ts]
    return torch.stack([torch.cat([e.unsqueeze(0), F.mT]) for F, e in maps])


def respond(law: Gaussian, problem: GaussianProblem, ts: Tensor, base: Tensor, c: float, equation: Anchor) -> Response:
    """The velocity that solves the equation at samples of a law."""
    n = law.d + 1
    mean, cov, _ = joint(law, problem.process, ts)
    signal = weighted(law, problem, ts, c, equation.tau)[:, :n]
    bend = signal[..., :n] + equation.kappa * (cov + outer(mean, mean))[:, :n, :n]
    move = torch.linalg.solve(bend, signal[..., n:] - signal[..., :n] @ base)
    change = torch.eye(n, dtype=torch.float64).repeat(len(ts), 1, 1)
    change[:, 1:, 1:] = torch.linalg.inv(torch.linalg.cholesky(cov[:, 1:n, 1:n]))
    change[:, 1:, 0] = -(change[:, 1:, 1:] @ mean[:, 1:n, None]).squeeze(2)
    least = torch.linalg.eigvalsh(change @ bend @ change.mT).min()
    return Response(move[:, 1:].mT, move[:, 0], float(least))


def forward_limit(method: ForwardMethod, problem: GaussianProblem) -> Limit | None:
    """The fixed point of affine velocities, under the method's own sampler; None where there is none or it repels."""
    equation = anchor(method)
    if equation is None or not equation.kappa > 0 or scale(method, problem, problem.law) is None:
        return None
    model, d, ts = problem.law.model(problem.process), problem.law.d, method.grid.ts[:-1]
    base = reference(problem, ts)
    rows, columns = np.tril_indices(d)

    def law_of(z: np.ndarray) -> Gaussian:
        root = torch.zeros(d, d, dtype=torch.float64)
        root[rows, columns] = torch.from_numpy(z[d:])
        return Gaussian(torch.from_numpy(z[:d]), root @ root.mT)

    def pack(law: Gaussian) -> np.ndarray:
        return np.concatenate([law.mean.numpy(), torch.linalg.cholesky(law.cov).numpy()[rows, columns]])

    def sampled(law: Gaussian) -> tuple[Gaussian, Response]:
        c = scale(method, problem, law)
        assert c is not None
        found = respond(law, problem, ts, base, c, equation)
        tuned = corrected_model(model, method.grid, list(found.slopes), list(found.shifts))
        return end_law(tuned, method.sampler, method.grid), found

    first = tilt(problem.law, problem.reward, equation.kappa / (scale(method, problem, problem.law) or 1.0))
    solved = optimize.root(lambda z: pack(sampled(law_of(z))[0]) - z, pack(_one(first)), tol=1e-9)
    end, found = sampled(law_of(solved.x))
    settled = bool(np.abs(pack(end) - solved.x).max() < 1e-7)
    return Limit(end, field=(found.slopes, found.shifts)) if settled and found.curvature > 0 else None


def scale(method: ForwardMethod, problem: GaussianProblem, law: Gaussian) -> float | None:
    """c of the method's advantage for samples of a law."""
    std = reward_std(law, problem.reward)
    return signal_scale(method.advantage, problem.group, std, std)


def forward_beta(method: ForwardMethod, problem: GaussianProblem) -> float | None:
    """``kappa / c`` for a linear reward and a weight linear in it."""
    equation = anchor(method)
    if equation is None or equation.tau is not None or not problem.linear:
        return None
    c = scale(method, problem, problem.law)  # a linear reward's spread does not change under the tilt
    return None if c is None else equation.kappa / c
