"""Samplers, one file each; ``SAMPLERS`` lists them by name and the law tests run over it."""

from girsanov.samplers.base import AffineSampler as AffineSampler
from girsanov.samplers.base import Sampler as Sampler
from girsanov.samplers.base import StagedSampler as StagedSampler
from girsanov.samplers.cps import CPS as CPS
from girsanov.samplers.dance_sde import DanceSDE as DanceSDE
from girsanov.samplers.dpm_solver import DPMSolverPP2M as DPMSolverPP2M
from girsanov.samplers.euler import Euler as Euler
from girsanov.samplers.euler_maruyama import EulerMaruyama as EulerMaruyama
from girsanov.samplers.flow_sde import FlowSDE as FlowSDE
from girsanov.samplers.gddim import GDDIM as GDDIM
from girsanov.samplers.gddim_schedule import GDDIMSchedule as GDDIMSchedule
from girsanov.samplers.heun import Heun as Heun
from girsanov.samplers.memoryless_flow import MemorylessFlow as MemorylessFlow
from girsanov.samplers.mixed import Mixed as Mixed
from girsanov.samplers.precise import PRECISE as PRECISE

SAMPLERS: dict[str, type[Sampler]] = {
    "euler": Euler,
    "heun": Heun,
    "dpm-solver++2m": DPMSolverPP2M,
    "gddim": GDDIM,
    "gddim-schedule": GDDIMSchedule,
    "euler-maruyama": EulerMaruyama,
    "flow-sde": FlowSDE,
    "dance-sde": DanceSDE,
    "cps": CPS,
    "precise": PRECISE,
    "memoryless-flow": MemorylessFlow,
    "mixed": Mixed,
}
"""Every sampler by name."""
