r"""Euler on the probability-flow ODE: ``x_s = x_t + (s - t) v``.

With the velocity ``v = d_alpha x_0 + d_sigma eps`` this is ``A = alpha + h d_alpha, B = sigma + h d_sigma``, ``h = s -
t``. On a rectified flow it equals DDIM.

Reference: Song et al. 2021, arXiv:2011.13456, Eq. 13 (probability flow).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.processes import Process
from girsanov.samplers.base import AffineSampler
from girsanov.types import Step


@dataclass(frozen=True)
class Euler(AffineSampler):
    """First-order deterministic sampler; one network pass a step."""

    def coefficients(self, process: Process, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """``alpha + h d_alpha, sigma + h d_sigma, 0``."""
        c, h = process(step.t), step.h
        return c.alpha + h * c.d_alpha, c.sigma + h * c.d_sigma, torch.zeros_like(h)
