r"""GRPO on flow models, as compositions: where noise is drawn, and which steps are trained.

===============  =================================================================================================
Flow-GRPO        Flow-SDE on all steps, the last left out; std over the whole batch; per-step KL without ``1 / dt``
Flow-GRPO-Fast   noise in two steps, at a random place of the first half
DanceGRPO        Dance-SDE, one start noise a prompt, a random 60 % of the steps, std a group, no KL
MixGRPO          noise in a sliding window of four steps, every reward normalised by itself
MixGRPO-Flash    the same with DPM-Solver++(2M) outside the window, and 0.4 times the steps after it
===============  =================================================================================================

All clip at 1e-4 with log-probs averaged over the latent and advantages held within +-5. Published besides: Flow-GRPO
24 samples a prompt, 2 updates an iteration, guidance 4.5, lr 3e-4 on LoRA, EMA, beta .04 (.01 for PickScore), 40 ODE
steps at evaluation; DanceGRPO 12 samples, lr 1e-5, full weights; MixGRPO 12 samples, lr 1e-5.

References: Liu et al. 2025, arXiv:2505.05470; Xue et al. 2025, arXiv:2505.07818; Li et al. 2025, arXiv:2507.21802; and
their code.
"""

from dataclasses import dataclass, field

from girsanov.grids import Grid
from girsanov.methods.advantages.base import Advantage, GlobalStd, GroupNormalised
from girsanov.methods.advantages.robust import Clipped, PerReward
from girsanov.methods.policy_gradient.clipped import ClippedPG
from girsanov.methods.policy_gradient.credit import StepLength
from girsanov.methods.policy_gradient.flash import Compressed
from girsanov.methods.policy_gradient.penalty import Penalty, PerStepKL
from girsanov.methods.policy_gradient.schedules import SamplerSchedule
from girsanov.methods.policy_gradient.steps import AllSteps, RandomSteps, Steps
from girsanov.methods.policy_gradient.windows import RandomWindow, SlidingWindow
from girsanov.samplers.base import Sampler
from girsanov.samplers.dance_sde import DanceSDE
from girsanov.samplers.dpm_solver import DPMSolverPP2M
from girsanov.samplers.euler import Euler
from girsanov.samplers.flow_sde import FlowSDE
from girsanov.samplers.mixed import Mixed


@dataclass(frozen=True, kw_only=True)
class FlowGRPO(ClippedPG):
    """Flow-GRPO."""

    sampler: Sampler = FlowSDE(0.7)
    grid: Grid = field(default_factory=lambda: Grid.uniform(10))
    advantage: Advantage = Clipped(GlobalStd(1e-4), 5.0)
    kl: Penalty | None = PerStepKL(0.04, StepLength())
    steps: Steps = AllSteps(leave=1)


@dataclass(frozen=True, kw_only=True)
class FlowGRPOFast(FlowGRPO):
    """Flow-GRPO that trains two steps an iteration."""

    sampler: Sampler = Mixed(FlowSDE(0.7), Euler(), 0, 2)
    schedule: SamplerSchedule = RandomWindow(every=1, leave=1, share=0.5)
    steps: Steps = AllSteps()


@dataclass(frozen=True, kw_only=True)
class DanceGRPO(ClippedPG):
    """DanceGRPO."""

    sampler: Sampler = DanceSDE(0.3)
    grid: Grid = field(default_factory=lambda: Grid.uniform(16))
    advantage: Advantage = Clipped(GroupNormalised(1e-8), 5.0)
    steps: Steps = RandomSteps(0.6, leave=1)
    same_start: bool = True


@dataclass(frozen=True, kw_only=True)
class MixGRPO(ClippedPG):
    """MixGRPO with Euler outside the window."""

    sampler: Sampler = Mixed(FlowSDE(0.7), Euler(), 0, 4)
    grid: Grid = field(default_factory=lambda: Grid.uniform(25))
    advantage: Advantage = Clipped(PerReward(GroupNormalised(1e-8)), 5.0)
    schedule: SamplerSchedule = SlidingWindow(every=25, leave=2, stride=1)


@dataclass(frozen=True, kw_only=True)
class MixGRPOFlash(MixGRPO):
    """MixGRPO with a second-order solver outside the window and fewer steps after it."""

    sampler: Sampler = Mixed(FlowSDE(0.7), DPMSolverPP2M(), 0, 4)
    schedule: SamplerSchedule = Compressed(SlidingWindow(every=25, leave=2, stride=1), 0.4)
