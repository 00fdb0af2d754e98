r"""What a diffusers scheduler says about the network: its process, its kind of prediction, its clock and its times.

==========================  ==============  ==============================  ==========
scheduler                   process         clock (what the network sees)   prediction
==========================  ==============  ==============================  ==========
flow matching               rectified flow  ``1000 t``, where sigma = t     velocity
a table of ``alpha_bar_i``  VP table        ``i = N t - 1``                 eps, v, x0
EDM with data of std 1      cosine          ``log(tan(pi t / 2)) / 4``      v
DPM on the cosine clock     cosine          ``t``                           v
==========================  ==============  ==============================  ==========

EDM's state is ``x0 + sigma eps`` and its network sees ``(x0 + sigma eps) / sqrt(1 + sigma^2)``, which is the cosine
process at ``tan(pi t / 2) = sigma``. Steps of Euler's method in that clock are DDIM's. So first-order deterministic
schedulers (DDIM, Euler) are one sampler here, and what sets them apart is the times they take: those are read from
the scheduler itself after ``set_timesteps``, shift, spacing and terminal value included.

References: Karras et al. 2022, arXiv:2206.00364, Table 1 (EDM); Esser et al. 2024, arXiv:2403.03206 (shift).
"""

import functools
import inspect
import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.predictions import Prediction
from girsanov.processes import Cosine, Process, RectifiedFlow, VPTable
from girsanov.samplers import GDDIM, DPMSolverPP2M, Euler, Sampler

LEAST_ALPHA_BAR = 2.0**-24  # a table that ends at pure noise has 0 there, whose eps says nothing of x_0
KINDS: dict[str, Prediction] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
SECOND_ORDER = ("DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler")
ANCESTRAL = ("DDPMScheduler", "EulerAncestralDiscreteScheduler")
FIRST_ORDER = ("DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler")
log = logging.getLogger("girsanov")


@dataclass(frozen=True)
class Noising:
    """How a network was trained: its process, what it predicts, and process time to what it receives."""

    process: Process
    prediction: Prediction
    time: Callable[[Tensor], Tensor]


def noising_of(scheduler: Any) -> Noising:
    """Process, prediction and clock of a diffusers scheduler. Raises GirsanovError on one that is not understood."""
    config, name = scheduler.config, type(scheduler).__name__
    kind = config.get("prediction_type", "epsilon")
    if is_flow(scheduler):
        total = config.num_train_timesteps
        whole = not name.startswith("FlowMatch")  # multistep solvers hand the network whole numbers
        return Noising(RectifiedFlow(), "velocity", (lambda t: whole_part(total * t)) if whole else lambda t: total * t)
    if name.startswith(("EDM", "Cosine")):
        if config.sigma_data != 1.0 or kind != "v_prediction":
            raise GirsanovError(f"{name} is understood for data of std 1 and v_prediction alone: give your own Model")
        return Noising(Cosine(), "v", (lambda t: t) if name.startswith("Cosine") else quarter_log)
    if not hasattr(scheduler, "alphas_cumprod") or kind not in KINDS:
        other = "FlowMatchEulerDiscreteScheduler" if kind == "flow_prediction" else "DDIMScheduler"
        raise GirsanovError(
            f"the scheduler {name} ({kind}) is not understood: put {other} into the pipeline, or give your own Model"
        )
    if config.get("clip_sample", False) or config.get("thresholding", False):
        warnings.warn(f"{name} clips the denoised sample, which no sampler here does: results differ", stacklevel=2)
    table = scheduler.alphas_cumprod.double().clamp_min(LEAST_ALPHA_BAR)
    total = len(table)
    return Noising(VPTable(table.tolist()), KINDS[kind], lambda t: total * t - 1)


def quarter_log(t: Tensor) -> Tensor:
    """EDM's clock, a quarter of the logarithm of ``tan(pi t / 2)``."""
    return torch.log(torch.tan(t * (math.pi / 2))) / 4


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler is that of a rectified flow."""
    # A scheduler that does not know the setting keeps it in its configuration all the same.
    knows = "use_flow_sigmas" in inspect.signature(type(scheduler).__init__).parameters
    told = knows and bool(scheduler.config.get("use_flow_sigmas", False))
    return told or type(scheduler).__name__.startswith("FlowMatch")


def whole_part(t: Tensor) -> Tensor:
    """``floor(t)``, with room for the rounding of float32 tables."""
    return torch.floor(t + 1e-4)


def sampler_of(scheduler: Any) -> Sampler:
    """The sampler that takes a scheduler's steps: exactly for DDIM, Euler, DPM-Solver++(2M) and DDPM, else the nearest.

    The nearest one takes the scheduler's times with DDIM's (Euler's) step; that is said once, for PNDM and UniPC say.
    """
    config, name = scheduler.config, type(scheduler).__name__
    midpoint = config.get("solver_order") == 2 and config.get("solver_type") == "midpoint"
    if name in SECOND_ORDER and midpoint and config.get("algorithm_type") == "dpmsolver++":
        return DPMSolverPP2M()
    if name in ANCESTRAL:
        return GDDIM(1.0)
    nearest: Sampler = Euler() if is_flow(scheduler) else GDDIM(0.0)
    if name.startswith("Cosine"):  # an SDE solver of its own; this is its ODE
        nearest = DPMSolverPP2M()
    if name not in FIRST_ORDER:
        tell_nearest(name, nearest)
    return nearest


@functools.cache
def tell_nearest(name: str, sampler: Sampler) -> None:
    """Says, once, that a scheduler's solver is not here."""
    log.warning("%s has a solver of its own: evaluations take its times with %s, or sampler=...", name, sampler)


def grid_of(scheduler: Any, n: int, sigmas: np.ndarray | None = None, mu: float | None = None) -> Grid:
    """The times of n steps of a scheduler.

    Args:
        scheduler: is not changed.
        n: number of steps.
        sigmas: the noise levels that the pipeline asks for before any shift; the scheduler's own by default.
        mu: logarithm of the shift, for schedulers that shift by the size of the image.
    """
    plain = {"skip_prk_steps": True} if type(scheduler).__name__ == "PNDMScheduler" else {}  # no times in between
    fresh = type(scheduler).from_config(scheduler.config, **plain)
    moving = {} if mu is None or not scheduler.config.get("use_dynamic_shifting", False) else {"mu": mu}
    if sigmas is None or scheduler.config.get("use_flow_sigmas", False):
        fresh.set_timesteps(n, **moving)
    else:
        fresh.set_timesteps(sigmas=sigmas.tolist(), **moving)
    process = noising_of(fresh).process
    if isinstance(process, RectifiedFlow):
        return Grid(fresh.sigmas.double())
    if isinstance(process, Cosine):
        return Grid(torch.atan(fresh.sigmas.double()) * (2 / math.pi))
    assert isinstance(process, VPTable)
    times = table_times(fresh, process)
    if len(times) > n + 1:
        raise GirsanovError(
            f"{type(fresh).__name__} asks its network between the steps, so its times are no grid: put DDIMScheduler "
            "into the pipeline, or give a grid of your own with method.grid.kind=trailing"
        )
    return Grid(times)


def table_times(scheduler: Any, process: VPTable) -> Tensor:
    """Times of a table's scheduler after ``set_timesteps``, and of where it ends: clean data, or the first row."""
    config, total = scheduler.config, len(process.alphas_cumprod)
    ends = inspect.signature(type(scheduler).__init__).parameters  # configurations keep the keys of other schedulers
    to_first = "set_alpha_to_one" in ends and not config.set_alpha_to_one
    to_first |= "final_sigmas_type" in ends and config.final_sigmas_type == "sigma_min"
    end = torch.tensor([1 / total if to_first else 0.0], dtype=torch.float64)
    if any(config.get(f"use_{name}_sigmas", False) for name in ("karras", "exponential", "beta")):
        return torch.cat([process.time_of_rho(scheduler.sigmas[:-1].double()), end])
    index = torch.unique(scheduler.timesteps.double()).flip(0)  # PNDM names its second step twice
    return torch.cat([(index + 1) / total, end])


def linear_mu(tokens: int, config: Any, last: float = 1.15) -> float:
    """Shift of FLUX, SD3.5 and Qwen-Image: linear in the number of image tokens, as the scheduler's config says."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    first, last = config.get("base_shift", 0.5), config.get("max_shift", last)
    slope = (last - first) / (high - low)
    return tokens * slope + first - slope * low


def even_sigmas(n: int) -> np.ndarray:
    """``1, ..., 1/n``: what FLUX's and Qwen-Image's pipelines ask their schedulers for."""
    return np.linspace(1.0, 1 / n, n)
