"""Samplers, one file each; ``SAMPLERS`` lists them by name and the law tests run over it."""

from girsanov.samplers.base import AffineSampler as AffineSampler
from girsanov.samplers.base import Sampler as Sampler
from girsanov.samplers.base import StagedSampler as StagedSampler
from girsanov.samplers.euler import Euler as Euler
from girsanov.samplers.gddim import GDDIM as GDDIM

SAMPLERS: dict[str, type[Sampler]] = {
    "euler": Euler,
    "gddim": GDDIM,
}
"""Every sampler by name."""
