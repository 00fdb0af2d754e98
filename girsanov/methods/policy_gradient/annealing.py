"""Stochasticity that changes over training: the sampler of an iteration has the eta that a curve gives it.

High eta explores and low eta discretises well; which order is better is an open question (the sampler study measures
it). A policy that ends at eta is deployed with the factor of that eta, if it has converged there (``deployment``).
"""

from dataclasses import dataclass

from girsanov.annealing import Curve, Linear
from girsanov.grids import Grid
from girsanov.methods.base import Turn
from girsanov.methods.policy_gradient.schedules import SamplerSchedule
from girsanov.samplers.base import Sampler
from girsanov.samplers.stochasticity import with_eta


@dataclass(frozen=True)
class AnnealedEta(SamplerSchedule):
    """The method's sampler at ``curve(iteration / (iterations - 1))``; a mixed one inside its window."""

    curve: Curve = Linear()

    def at(self, sampler: Sampler, grid: Grid, turn: Turn) -> Sampler:
        """The sampler at this iteration's eta."""
        return with_eta(sampler, self.curve.at(min(1.0, turn.index / max(1, turn.total - 1))))
