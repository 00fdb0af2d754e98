r"""Fixed points of stochastic methods on a given grid: Gaussian data, quadratic reward, any single-step sampler.

The reference chain is ``x_s ~ N(F x + c, std^2 I)``; a tuned policy shifts each mean by ``delta(x)``. With the affine
fields that a time-indexed network can represent, every fixed point is one backward recursion over ``V(x) = q^T x - x^T
Q x / 2``:

* path KL (max ``E r - beta sum |delta|^2 / (2 std^2)``): ``delta = (std^2 / beta) grad V(F x + c + delta)``, that is
  ``(I + std^2 Q / beta) delta = (std^2 / beta) (q - Q (F x + c))``, and V of the step's start is the maximum.
* per-step KL: a policy gradient whose advantage is the terminal reward, with a KL penalty of its own at each step,
  never sees the KL of other steps. ``E[A grad log pi] = beta grad KL`` at each state gives the same delta, but with
  ``W(x) = E[r | x]`` under the tuned chain instead of V. The later steps of that chain pull towards the reward by
  themselves, so W is flatter than V, which also counts the price they are spared: the limit is steered less. For a
  linear reward the two have the same gradient and the limits are one.
* lean adjoint: adjoint matching regresses ``delta`` on ``(std^2 / beta) E[Pi^T grad r(x_end) | x_t]``, Pi the product
  of the *reference* Jacobians F of the later steps, under the tuned chain. By the envelope theorem ``grad V(x_s) =
  E[Pi^T grad r]`` at the path-KL optimum, so with the costate after the step the two fixed points are the same law to
  rounding; with the one before it they differ by O(h).

Steps without noise have no density and take no control.

References: Domingo-Enrich et al. 2025, arXiv:2409.08861 (lean adjoint); Liu et al. 2025, arXiv:2505.05470 (per-step
    KL). The recursions are derived here.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.models import Model
from girsanov.problems.laws import Gaussian
from girsanov.problems.moments import AffineKernel, chain_law
from girsanov.problems.rewards import QuadraticReward, check_beta
from girsanov.types import Cond

Kernels = Sequence[AffineKernel]
"""A chain, noisiest step first."""


@dataclass(frozen=True)
class Limit:
    """Where a method ends.

    Attributes:
        law: law of its end points on the grid.
        kernels: its chain, step by step, or None where the method tunes no chain.
        field: what is added to the velocity at every step's start, ``slope x + shift`` ([K, d, d] and [K, d]), where
            the limit is found as a field.
    """

    law: Gaussian
    kernels: tuple[AffineKernel, ...] | None = None
    field: tuple[Tensor, Tensor] | None = None


def _shifted(kernel: AffineKernel, slope: Tensor, pull: Tensor) -> AffineKernel:
    """The kernel whose mean is moved by the delta with ``(I + slope) delta = pull - slope mean``."""
    inverse = torch.linalg.inv(torch.eye(len(pull), dtype=torch.float64) + slope)
    return dataclasses.replace(kernel, F=inverse @ kernel.F, c=inverse @ (kernel.c + pull))


def _limit(kernels: list[AffineKernel], start: tuple[Tensor, Tensor]) -> Limit:
    return Limit(chain_law(kernels, *start), tuple(kernels))


def path_kl_limit(kernels: Kernels, start: tuple[Tensor, Tensor], reward: QuadraticReward, beta: float) -> Limit:
    """Optimum of ``E r - beta KL(path)`` over the means of the kernels: the discrete linear-quadratic control problem.

    Args:
        kernels: the reference chain.
        start: mean [d] and covariance [d, d] of x_T.
        reward: the pay-off.
        beta: weight of the path KL.

    Raises:
        GirsanovError: the value becomes infinite (a reward that curves up more than the KL holds).
    """
    Q, q, tuned = reward.A, reward.b, list[AffineKernel]()
    for kernel in reversed(kernels):
        g = kernel.std**2 / check_beta(beta)
        mix = torch.eye(len(q), dtype=torch.float64) + g * Q
        if not bool((torch.linalg.eigvalsh(mix) > 0).all()):
            raise GirsanovError(
                "the value of this control problem is infinite: raise beta, or give a reward that curves down"
            )
        tuned.insert(0, _shifted(kernel, g * Q, g * q))
        held_Q, held_q = torch.linalg.solve(mix, Q), torch.linalg.solve(mix, q)
        q = kernel.F.mT @ (held_q - held_Q @ kernel.c)
        Q = kernel.F.mT @ held_Q @ kernel.F
        Q = 0.5 * (Q + Q.mT)
    return _limit(tuned, start)


def per_step_kl_limit(
    kernels: Kernels, start: tuple[Tensor, Tensor], reward: QuadraticReward, beta: float | Sequence[float]
) -> Limit:
    """Fixed point of a policy gradient with terminal advantages and a KL penalty a step.

    Arguments as ``path_kl_limit``; ``beta`` may be a number a step, infinite for a step that is not trained.
    """
    Q, q, tuned = reward.A, reward.b, list[AffineKernel]()
    betas = [beta] * len(kernels) if isinstance(beta, int | float) else beta
    for kernel, price in zip(reversed(kernels), reversed(betas), strict=True):
        g = kernel.std**2 / check_beta(price)
        moved = _shifted(kernel, g * Q, g * q)
        tuned.insert(0, moved)
        q, Q = moved.F.mT @ (q - Q @ moved.c), moved.F.mT @ Q @ moved.F
    return _limit(tuned, start)


def lean_adjoint_limit(
    kernels: Kernels,
    start: tuple[Tensor, Tensor],
    reward: QuadraticReward,
    beta: float,
    seen: AffineKernel | None = None,
) -> Limit:
    """Population fixed point of adjoint matching with the costate after the step (arguments as ``path_kl_limit``).

    ``E[x_seen | x_s] = K x_s + e`` under the tuned chain turns the regression into a linear equation a step. ``seen``
    is the map of the last step at whose image the reward's gradient is taken, if that is not the step itself (the
    noiseless last iterate): it does not depend on the last control.
    """
    one = torch.eye(len(reward.b), dtype=torch.float64)
    Pi, K, e, tuned, rest = one, one, torch.zeros_like(reward.b), list[AffineKernel](), list(kernels)
    if seen is not None:
        last = rest.pop()
        g, K, e = last.std**2 / check_beta(beta), seen.F, seen.c
        tuned = [dataclasses.replace(last, F=last.F - g * reward.A @ K, c=last.c + g * (reward.b - reward.A @ e))]
        Pi = last.F
    for kernel in reversed(rest):
        g = kernel.std**2 / check_beta(beta)
        moved = _shifted(kernel, g * Pi.mT @ reward.A @ K, g * Pi.mT @ (reward.b - reward.A @ e))
        tuned.insert(0, moved)
        Pi, e, K = Pi @ kernel.F, K @ moved.c + e, K @ moved.F
    return _limit(tuned, start)


def path_kl(tuned: Kernels, reference: Kernels, start: tuple[Tensor, Tensor]) -> Tensor:
    """``KL(tuned path || reference path) = sum E |delta(x)|^2 / (2 std^2)`` under the tuned chain, shape [].

    Infinite if a step without noise was moved.
    """
    (mean, cov), total = start, torch.zeros((), dtype=torch.float64)
    for new, old in zip(tuned, reference, strict=True):
        D, e = new.F - old.F, new.c - old.c
        square = (D @ mean + e).square().sum() + (D @ cov @ D.mT).trace()
        if old.std > 0:
            total = total + square / (2 * old.std**2)
        elif float(square) > 1e-24:
            return torch.full((), torch.inf, dtype=torch.float64)
        mean, cov = new.push(mean, cov)
    return total


def tuned_model(model: Model, grid: Grid, reference: Kernels, tuned: Kernels) -> Model:
    """The reference model with the controls of a tuned chain as a velocity, to be run by any other sampler.

    At the grid's times the correction is ``delta / gain``, between them that of ``corrected_model``.

    Raises GirsanovError unless the model predicts velocities and the chain is of a one-stage sampler.
    """
    gains = [k.gain for k in reference]
    if model.prediction != "velocity" or any(g is None for g in gains):
        raise GirsanovError(
            "a tuned chain becomes a field for velocity models and one-stage samplers: use model(prediction='velocity')"
        )
    pairs = list(zip(tuned, reference, gains, strict=True))
    slopes = [(a.F - b.F) / float(g or 1) for a, b, g in pairs]
    return corrected_model(model, grid, slopes, [(a.c - b.c) / float(g or 1) for a, b, g in pairs])


def corrected_model(model: Model, grid: Grid, slopes: Sequence[Tensor], shifts: Sequence[Tensor]) -> Model:
    """The model whose raw prediction is moved by ``slope x + shift`` at each step's start, [d, d] and [d] a step.

    Between the grid's times the correction is linear in time, and it is 0 at the last time, where no step begins.
    """
    matrices = torch.stack([*slopes, torch.zeros_like(slopes[0])]).flip(0)
    vectors = torch.stack([*shifts, torch.zeros_like(shifts[0])]).flip(0)
    knots = grid.ts.flip(0)

    def net(x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        j = torch.searchsorted(knots, t.double().contiguous()).clamp(1, len(knots) - 1)
        w = ((t.double() - knots[j - 1]) / (knots[j] - knots[j - 1])).clamp(0, 1)
        slope = torch.lerp(matrices[j - 1], matrices[j], w.reshape(-1, 1, 1))
        shift = torch.lerp(vectors[j - 1], vectors[j], w.reshape(-1, 1))
        move = (slope @ x.flatten(1).double().unsqueeze(-1)).squeeze(-1) + shift
        return model.net(x, t, cond) + move.to(x.dtype).view_as(x)

    return dataclasses.replace(model, net=net)
