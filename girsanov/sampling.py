"""Samples from a model in one call: keyed noise, the rollout, the decoder."""

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.models import ModelLike
from girsanov.noise import Noise
from girsanov.rollout import rollout
from girsanov.samplers.base import Sampler
from girsanov.samplers.euler import Euler
from girsanov.starts import first_states
from girsanov.types import Cond

STEPS = 20


@torch.no_grad()
def sample(
    model: ModelLike,
    n: int | None = None,
    cond: Cond | None = None,
    *,
    ids: Tensor | None = None,
    sampler: Sampler | None = None,
    grid: Grid | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Decoded samples [n, *D]; the same seed gives the same ones, also for a longer batch.

    Args:
        model: a model, or a view of a policy.
        n: how many; by default as many as there are conditions.
        cond: conditions of the n samples.
        ids: their numbers [n], the keys of their noise; 0 .. n - 1 by default.
        sampler, grid: how; Euler and 20 uniform steps by default.
        seed: key of the noise; sample i has the noise of (seed, i), also when it is drawn alone (``ids``).
        dtype, device: of the samples.

    Raises:
        GirsanovError: neither n nor conditions, or both and they differ; not as many ids.
    """
    count = len(cond) if n is None and cond is not None else n
    if count is None or count < 1 or (cond is not None and count != len(cond)):
        raise GirsanovError("sample needs how many samples to draw, or one condition for each: sample(model, 64)")
    if ids is not None and len(ids) != count:
        raise GirsanovError(f"{count} samples have {len(ids)} ids: give one for each")
    noise = Noise(seed, 0, torch.arange(count) if ids is None else ids, device=device)
    how, times = sampler or Euler(), grid or Grid.uniform(STEPS)
    x_T = first_states(model, times, noise, cond, dtype)
    return model.decode(rollout(model, how, times, x_T, cond, noise=noise, keep=()).x0)
