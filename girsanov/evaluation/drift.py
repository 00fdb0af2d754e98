r"""How far a tuned model has moved from its reference.

**Path KL.** A sampler's chain is a product of Gaussian kernels. For two models under one sampler the laws of the
chains differ by

.. math:: KL(P \,\|\, P^{ref}) = E_P \sum_k \frac{|mean_k(x_k) - mean^{ref}_k(x_k)|^2}{2\, std_k^2}

over the steps with noise: Girsanov's theorem on the grid. It is exact for the chain, an upper bound of the KL of the
samples (data processing), and as steps shrink it tends to ``(1/2) int |drift difference|^2 / (eta g)^2 dt``. A
noiseless last step is left out: no density, no KL.

**Deterministic samplers** have no path KL (it is infinite). Two substitutes, named for what they are:

* ``energy``: ``E int |v - v_ref|^2 dt`` along the deployed trajectories, the cost that deterministic adjoint matching
  charges.
* ``kernel_kl`` of a GDDIM(eta=1) at the states the deterministic sampler visited: the KL that the same network change
  would cost under that noise, an estimate and no bound, since the states are not the noisy chain's. ``path_kl`` with
  GDDIM(eta=1) is exact for the noisy sampler itself.

Reference: Girsanov 1960, doi:10.1137/1105027; the discrete form is the chain rule of the KL.
"""

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.models import ModelLike, velocity
from girsanov.noise import NoiseSource
from girsanov.precision import as_wide, onto
from girsanov.rollout import rollout
from girsanov.samplers.base import Sampler
from girsanov.types import Cond, Trajectory


@torch.no_grad()
def path_kl(
    model: ModelLike,
    reference: ModelLike,
    sampler: Sampler,
    grid: Grid,
    x_T: Tensor,
    cond: Cond | None = None,
    *,
    noise: NoiseSource,
) -> Tensor:
    """The sum of kernel KLs along chains of the model from x_T [B, *D]: float64 [B], whose mean estimates the path KL.

    Raises GirsanovError if no step of the sampler has noise.
    """
    trajectory = rollout(model, sampler, grid, x_T, cond, noise=noise)
    total = as_wide(x_T.new_zeros(len(x_T)))
    if not trajectory.trainable:
        raise GirsanovError(
            "the path KL of a deterministic sampler is infinite: measure energy(...), or path_kl with GDDIM(eta=1.0)"
        )
    for tr in trajectory.trainable:
        mean = sampler.kernel(reference, tr.asked, tr.step, trajectory.cond, tr.state)[0].mean
        total += _kl(tr.mean, mean, tr.std)
    return total


@torch.no_grad()
def kernel_kl(model: ModelLike, reference: ModelLike, sampler: Sampler, trajectory: Trajectory) -> Tensor:
    """The sum over a trajectory's states of ``KL(sampler's kernel of model || of reference)``, float64 [B].

    Along the model's own noisy chain this is ``path_kl``; along any other states it is an estimate (see above).

    Raises GirsanovError if no step of the sampler has noise, or it needs more than the state (multistep solvers).
    """
    if not sampler.single_step:
        raise GirsanovError(
            f"{type(sampler).__name__} needs its past: use a single-step sampler, for example GDDIM(eta=1.0)"
        )
    found = []
    for tr in trajectory:
        kernel = sampler.kernel(model, tr.asked, tr.step, trajectory.cond)[0]
        if kernel.stochastic:
            other = sampler.kernel(reference, tr.asked, tr.step, trajectory.cond)[0]
            found.append(_kl(kernel.mean, other.mean, kernel.std))
    if not found:
        raise GirsanovError(
            "a deterministic sampler has no kernel KL: use a stochastic one, for example GDDIM(eta=1.0)"
        )
    return torch.stack(found).sum(0)


def _kl(mean: Tensor, other: Tensor, std: Tensor) -> Tensor:
    """``|mean - other|^2 / (2 std^2)``, float64 [B]."""
    gap = (as_wide(mean) - as_wide(other)).flatten(1).square().sum(1)
    return 0.5 * gap / onto(std, gap.device) ** 2


@torch.no_grad()
def energy(
    model: ModelLike,
    reference: ModelLike,
    sampler: Sampler,
    grid: Grid,
    x_T: Tensor,
    cond: Cond | None = None,
    *,
    noise: NoiseSource | None = None,
) -> Tensor:
    r"""``sum_k |t_k - s_k| |v - v_ref|^2 (x_k, t_k)`` along trajectories of the model from x_T [B, *D]: float64 [B].

    Of a deterministic sampler it is the control energy ``int |u|^2 dt`` of the change.
    """
    trajectory = rollout(model, sampler, grid, x_T, cond, noise=noise)
    total = as_wide(x_T.new_zeros(len(x_T)))
    for tr in trajectory:
        gap = velocity(model, tr.asked, tr.step.t, cond) - velocity(reference, tr.asked, tr.step.t, cond)
        total += onto(tr.step.h.abs(), total.device) * as_wide(gap).flatten(1).square().sum(1)
    return total
