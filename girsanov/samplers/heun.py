r"""Heun on the probability-flow ODE: the trapezoid rule, second order.

.. math:: \tilde x = x_t + h v(x_t, t), \qquad x_s = x_t + \tfrac h2 [ v(x_t, t) + v(\tilde x, s) ], \qquad h = s - t

Where the model fixes no finite velocity at s (a VP process at s = 0, an x0 prediction at sigma = 0) the step is
Euler's. That is at most the last step of a grid, whose own error is O(h^2), so the order stays two.

Reference: Karras et al. 2022, arXiv:2206.00364, Algorithm 1.
"""

from dataclasses import dataclass

from torch import Tensor

from girsanov.models import ModelLike, has_velocity
from girsanov.predictions import add_scaled
from girsanov.samplers.base import StagedSampler, Stages
from girsanov.types import Stage, Step


@dataclass(frozen=True)
class Heun(StagedSampler):
    """Second-order deterministic sampler; two network passes a step."""

    @property
    def order(self) -> int:
        """2."""
        return 2

    def stages(self, model: ModelLike, x: Tensor, step: Step) -> Stages:
        """Two stages, each of half the step's length; one of the whole length where Heun falls back to Euler."""
        h = step.h
        two = has_velocity(model, step.s)
        share = h.abs() / 2 if two else h.abs()
        v = yield Stage(x, step.t, share)
        euler = add_scaled(x, v, h)
        if not two:
            return euler
        w = yield Stage(euler, step.s, share)
        return add_scaled(x, v + w, h / 2)
