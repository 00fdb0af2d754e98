r"""The numbers of a one-stage step, worked out once: its affine map of the raw prediction, its noise, its gain.

With ``mean = A x_0 + B eps`` and a prediction ``p = a x_0 + b eps``,

.. math:: mean = c_x x + c_p p, \qquad
          \frac{\partial\, mean}{\partial\, velocity} = \frac{B \alpha - A \sigma}{\alpha \dot\sigma - \sigma
          \dot\alpha}

A run asks for the same few steps thousands of times, and each takes fifty operations on numbers: samplers and processes
are values (frozen dataclasses), so a step at host times is remembered by value. Others, and times per sample, are
worked out anew.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from girsanov.predictions import Prediction, affine_map
from girsanov.processes import Process, Schedule
from girsanov.types import Step


class HasCoefficients(Protocol):
    """A one-stage sampler."""

    @property
    def stochastic(self) -> bool: ...
    def coefficients(self, process: Process, step: Step) -> tuple[Tensor, Tensor, Tensor]: ...


@dataclass(frozen=True)
class Plan:
    """What a step does to any state.

    Attributes:
        c_x, c_p: the mean is ``c_x x + c_p p``, float64 [] or [B].
        std: of the noise, [] or [B].
        noisy: whether noise is drawn.
        gain: ``d mean / d velocity``, [] or [B].
        length: ``|s - t|``, [] or [B].
        schedule: the process at t.
    """

    c_x: Tensor
    c_p: Tensor
    std: Tensor
    noisy: bool
    gain: Tensor
    length: Tensor
    schedule: Schedule


def plan(sampler: HasCoefficients, process: Process, prediction: Prediction, step: Step) -> Plan:
    """The plan of a step. Raises GirsanovError where the prediction does not determine it."""
    if step.t.ndim == 0 and step.t.device.type == "cpu" and _is_value(sampler) and _is_value(process):
        key: tuple[Any, ...] = (sampler, process, prediction, float(step.t), float(step.s), step.i, step.n)
        return remembered(*key)
    return _work_out(sampler, process, prediction, step)


def _is_value(part: object) -> bool:
    """Whether equal objects stay equal: a frozen dataclass of hashable fields."""
    parameters = getattr(type(part), "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        return False
    try:
        hash(part)
    except TypeError:
        return False
    return True


@lru_cache(maxsize=4096)
def remembered(
    sampler: HasCoefficients, process: Process, prediction: Prediction, t: float, s: float, i: int, n: int
) -> Plan:
    """The plan of a step at host times; ``remembered.cache_clear()`` forgets them all."""
    with torch.inference_mode(False):  # tensors made in inference mode could not enter a graph later
        now, after = (torch.tensor(v, dtype=torch.float64, device="cpu") for v in (t, s))
        return _work_out(sampler, process, prediction, Step(now, after, i, n))


def _work_out(sampler: HasCoefficients, process: Process, prediction: Prediction, step: Step) -> Plan:
    c = process(step.t)
    a, b, std = sampler.coefficients(process, step)
    maps = affine_map(c, prediction, a, b)
    gain = (b * c.alpha - a * c.sigma) / c.wronskian
    noisy = sampler.stochastic and (std.device.type != "cpu" or bool((std > 0).any()))
    return Plan(*maps, std, noisy, gain, step.h.abs(), c)
