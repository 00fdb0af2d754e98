r"""BranchGRPO: Dance-SDE on trees, every depth normalised by itself.

Published: 16 leaves from splits at steps 0, 3, 6 and 9 of 20, eta .3, clip 1e-3; node rewards are means over children.
Its variants are parts: ``paths.fusion=likelihood`` (children weighted by their density), ``paths.width=best-child`` or
``extremes`` (leaves left out of the loss), ``steps=pruned`` (depths left out: 15 .. 18, from there one nearer to the
last split every 30 iterations). Pruned nodes are masked, so they cost what they cost before.

Reference: Li et al. 2025, arXiv:2509.06040 and its code.
"""

from dataclasses import dataclass, field

from girsanov.grids import Grid
from girsanov.methods.policy_gradient.grpo import DanceGRPO
from girsanov.methods.policy_gradient.paths import Paths
from girsanov.methods.policy_gradient.steps import AllSteps, Steps
from girsanov.methods.policy_gradient.trees import Trees
from girsanov.surrogates import Clip, Surrogate


@dataclass(frozen=True, kw_only=True)
class BranchGRPO(DanceGRPO):
    """BranchGRPO."""

    grid: Grid = field(default_factory=lambda: Grid.uniform(20))
    surrogate: Surrogate = Clip(1e-3)
    steps: Steps = AllSteps(leave=1)
    same_start: bool = False
    paths: Paths = Trees()
