"""The stochasticity of a sampler in one unit: reading it off, and the same sampler at another.

Published samplers name their noise level in units of their own: Flow-GRPO's ``a`` is sqrt(2) eta.
"""

import dataclasses
import math

from girsanov.errors import GirsanovError
from girsanov.samplers.base import Sampler
from girsanov.samplers.euler import Euler
from girsanov.samplers.euler_maruyama import EulerMaruyama
from girsanov.samplers.flow_sde import FlowSDE
from girsanov.samplers.gddim import GDDIM
from girsanov.samplers.heun import Heun
from girsanov.samplers.memoryless_flow import MemorylessFlow
from girsanov.samplers.mixed import Mixed
from girsanov.samplers.precise import PRECISE

LEVELS: dict[type[Sampler], tuple[str, float]] = {
    GDDIM: ("eta", 1.0),
    EulerMaruyama: ("eta", 1.0),
    FlowSDE: ("a", math.sqrt(2)),
    PRECISE: ("eta", math.sqrt(2)),
}
"""Samplers with a level: the name of its field, and how much of it is eta = 1."""


def eta_of(sampler: Sampler) -> float:
    """The eta of a sampler that has one and the same in every step.

    Raises GirsanovError for the others (constant diffusion, windows).
    """
    if isinstance(sampler, MemorylessFlow):
        return 1.0
    if type(sampler) in LEVELS:
        field, unit = LEVELS[type(sampler)]
        return float(getattr(sampler, field)) / unit
    if isinstance(sampler, Euler | Heun):
        return 0.0
    raise GirsanovError(
        f"{type(sampler).__name__} has no single eta: its noise is not a fixed multiple of the reverse SDE's; "
        "GDDIM and FlowSDE have one"
    )


def with_eta(sampler: Sampler, eta: float) -> Sampler:
    """The same sampler at another eta; a mixed one inside its window.

    Raises GirsanovError for samplers without a level.
    """
    if isinstance(sampler, Mixed):
        return dataclasses.replace(sampler, inside=with_eta(sampler.inside, eta))
    if type(sampler) not in LEVELS:
        raise GirsanovError(
            f"{type(sampler).__name__} has no level of noise to set: use GDDIM(eta), or FlowSDE for parity"
        )
    field, unit = LEVELS[type(sampler)]
    return dataclasses.replace(sampler, **{field: eta * unit})  # type: ignore[type-var]
