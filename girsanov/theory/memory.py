r"""How much a sampler remembers of where it started: the correlation of start and end.

For data N(0, s^2) the untuned eta-sampler started from its own marginal at time t has

.. math:: corr(x_t, x_{end}) = w^{\eta^2 / 2}, \qquad w = \frac{\alpha^2 s^2}{\alpha^2 s^2 + \sigma^2}

(the slope of ``E[x_end | x_t]`` in ``y = x / alpha`` is ``w^{(1 + eta^2)/2}``, and ``std(y_t) / s = w^{-1/2}``). It is
0 from pure noise (alpha = 0) for every eta > 0, and 1 for the probability flow, which forgets nothing. A sampler of
zero memory is *memoryless*: start and end are independent, so a control may tilt the end without moving the start. A
chain on a grid has its own correlation, also exact: gDDIM's first step from alpha = 0 forgets everything.

Reference: Domingo-Enrich et al. 2025, arXiv:2409.08861, section 4 (memorylessness); the formula is derived here.
"""

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.problems.laws import Gaussian
from girsanov.problems.moments import end_map, prior_moments
from girsanov.processes import Process
from girsanov.samplers.base import Sampler


def memory(process: Process, eta: float, start: float = 1.0, scale: float = 1.0) -> float:
    """Correlation of start and end of the eta-sampler in continuous time, for data of standard deviation ``scale``."""
    if not eta >= 0 or not scale > 0:
        raise GirsanovError(f"memory needs eta >= 0 and a positive data scale, not {eta} and {scale}")
    c = process(start)
    signal = float(c.alpha * scale) ** 2
    return float((signal / (signal + float(c.sigma) ** 2)) ** (eta**2 / 2))


def chain_memory(process: Process, sampler: Sampler, grid: Grid, scale: float = 1.0) -> float:
    """The same for a sampler on a grid, started from the process's prior: exact, by its affine maps."""
    model = Gaussian(0.0, scale**2).model(process)
    chain = end_map(model, sampler, grid)
    mean, cov = prior_moments(model)
    carried = float((chain.M @ cov @ chain.M.mT).squeeze())
    return float((carried / float(chain.law(mean, cov).cov.squeeze())) ** 0.5)
