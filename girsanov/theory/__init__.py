"""Sampler stochasticity as code: reward gaps between samplers, exact where they can be, bounded elsewhere."""

from girsanov.theory.bound import Bound as Bound
from girsanov.theory.bound import gap_bound as gap_bound
from girsanov.theory.bound import require_dissipative as require_dissipative
from girsanov.theory.bound import wasserstein_bound as wasserstein_bound
from girsanov.theory.gap import Gap as Gap
from girsanov.theory.gap import reward_gap as reward_gap
from girsanov.theory.gap import tuned_gap as tuned_gap
from girsanov.theory.gap import untuned_law as untuned_law
from girsanov.theory.line import Line as Line
from girsanov.theory.line import geometric_grid as geometric_grid
from girsanov.theory.memory import chain_memory as chain_memory
from girsanov.theory.memory import memory as memory
from girsanov.theory.optimum import LineOptimum as LineOptimum
from girsanov.theory.optimum import line_optimum as line_optimum
