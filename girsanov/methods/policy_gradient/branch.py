r"""BranchGRPO: Dance-SDE on trees, every depth normalised by itself.

Published: 16 leaves from splits at steps 0, 3, 6 and 9 of 20, eta .3, clip 1e-3. Node rewards are means over leaves
here (the weighting by the leaves' likelihood, and the pruning of its variants, are left out).

Reference: Li et al. 2025, arXiv:2509.06040 and its code.
"""

from dataclasses import dataclass, field

from girsanov.grids import Grid
from girsanov.methods.policy_gradient.grpo import DanceGRPO
from girsanov.methods.policy_gradient.paths import Paths, Trees
from girsanov.methods.policy_gradient.steps import AllSteps, Steps
from girsanov.surrogates import Clip, Surrogate


@dataclass(frozen=True, kw_only=True)
class BranchGRPO(DanceGRPO):
    """BranchGRPO."""

    grid: Grid = field(default_factory=lambda: Grid.uniform(20))
    surrogate: Surrogate = Clip(1e-3)
    steps: Steps = AllSteps(leave=1)
    same_start: bool = False
    paths: Paths = Trees()
