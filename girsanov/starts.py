r"""Where a sample begins: pure noise, or a clean sample that is noised part of the way.

At the first time ``t_0`` of the grid, with ``z ~ N(0, I)``,

.. math:: x_{t_0} = \alpha_{t_0} x_{start} + \sigma_{t_0} z \qquad\text{or, without a start,}\qquad x_{t_0} = prior(z)

The starts are conditions like any other: a table ``"start"`` [R, *D] of clean samples (latents of pictures), one row a
request. A grid that begins at a lower time keeps more of them; what a method then learns is the control of the process
*from that start*, and its path KL begins there too.

Reference: Meng et al. 2021, arXiv:2108.01073 (SDEdit), Algorithm 1; diffusers calls it img2img and ``t_0`` strength.
"""

from typing import Literal

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.models import ModelLike
from girsanov.noise import Noise
from girsanov.predictions import combine
from girsanov.types import Cond

START = "start"
"""Name of the table of starts."""

Storage = Literal["bf16", "fp16"]
"""How states may be kept in half the memory."""

STORAGE: dict[Storage | None, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def first_states(
    model: ModelLike, grid: Grid, noise: Noise, cond: Cond | None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The states [B, *D] at the grid's first time, from the next numbers of the noise.

    ``dtype`` is that of the states, also of those that follow (``rollout``); the noise is float32 at least.

    Raises:
        GirsanovError: starts of another shape than the model's samples.
    """
    z = noise.normal(model.shape, torch.promote_types(dtype, torch.float32))
    if not has_start(cond):
        return model.process.prior(z).to(dtype)
    assert cond is not None
    start = cond[START].to(z)
    if start.shape != z.shape:
        raise GirsanovError(
            f"the start of a sample has the shape {list(start.shape[1:])} and the model's samples "
            f"{list(model.shape)}: give clean samples of the model's own shape (latents of a latent model)"
        )
    c = model.process(grid.ts[0])
    return combine(start, z, c.alpha, c.sigma).to(dtype)


def has_start(cond: Cond | None) -> bool:
    """Whether the requests begin from clean samples."""
    return cond is not None and START in cond.tables


def last_steps(grid: Grid, strength: float) -> Grid:
    """The last ``floor(strength n)`` of a grid's n steps: what a start is redrawn with.

    Raises:
        GirsanovError: no step is left, or a strength outside (0, 1].
    """
    n = len(grid)
    kept = int(n * strength + 1e-9)  # 0.29 * 100 is 28.999999999999996
    if not 0 < strength <= 1 or kept < 1:
        raise GirsanovError(
            f"a strength of {strength:g} leaves none of {n} steps: take between {1 / n:.3g} and 1, or more steps"
        )
    return Grid(grid.ts[n - kept :])
