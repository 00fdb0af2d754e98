r"""Remedies for Flow-GRPO's uneven steps and one-sided clip, each one part exchanged.

===============  ==================================================  =================================================
method           exchanged part                                      what it repairs
===============  ==================================================  =================================================
GRPO-Guard       ``RatioNorm``, policy loss divided by ``|dt|``      the mean log-ratio below 0, its variance in t
PCPO             ``ProportionalCredit``                              credit of a step out of proportion to its length
TempFlow-GRPO    one noisy step, loss weighted by its std,           which step earned the reward; uneven gradients
                 one start noise a prompt
Flow-DPPO        ``TrustMask`` instead of the clip                   ratios of single samples as a measure of distance
RSM hinge        ``Hinge`` instead of the clip                       the exponential
===============  ==================================================  =================================================

At the first update of a batch GRPO-Guard's gradient is Flow-GRPO's times ``std / |dt|`` a step, PCPO's times
``zeta |dt| std / |gain|``, TempFlow's times ``2.25 std``; Flow-DPPO and the hinge have Flow-GRPO's and differ from the
second on.

Taken from public code where the papers leave it open; where noise is drawn in Flow-DPPO's 3 of 10 steps (the first
three, here) and GRPO-Guard's clip range (Flow-GRPO's, here) are our choices.

References: arXiv:2510.22319 (GRPO-Guard); arXiv:2509.25774 (PCPO); arXiv:2508.04324 (TempFlow-GRPO); arXiv:2606.11025
(Flow-DPPO); arXiv:2604.17415 (RSM), whose code was read for the scales of TempFlow and PCPO.
"""

from dataclasses import dataclass

from girsanov.methods.policy_gradient.credit import (
    NoiseLevel,
    PerTime,
    ProportionalCredit,
    Ratio,
    RatioNorm,
    StepLength,
    StepWeight,
)
from girsanov.methods.policy_gradient.grpo import FlowGRPO
from girsanov.methods.policy_gradient.penalty import Penalty, PerStepKL
from girsanov.methods.policy_gradient.schedules import SamplerSchedule
from girsanov.methods.policy_gradient.steps import AllSteps, Steps
from girsanov.methods.policy_gradient.windows import RandomWindow
from girsanov.samplers.base import Sampler
from girsanov.samplers.euler import Euler
from girsanov.samplers.flow_sde import FlowSDE
from girsanov.samplers.mixed import Mixed
from girsanov.surrogates import Hinge, Surrogate, TrustMask


@dataclass(frozen=True, kw_only=True)
class GRPOGuard(FlowGRPO):
    """GRPO-Guard."""

    ratio: Ratio = RatioNorm()
    weight: StepWeight = PerTime()


@dataclass(frozen=True, kw_only=True)
class PCPO(FlowGRPO):
    """Proportionate credit policy optimisation."""

    ratio: Ratio = ProportionalCredit()


@dataclass(frozen=True, kw_only=True)
class TempFlowGRPO(FlowGRPO):
    """TempFlow-GRPO."""

    sampler: Sampler = Mixed(FlowSDE(0.7), Euler(), 0, 1)
    schedule: SamplerSchedule = RandomWindow(every=1, leave=1)
    weight: StepWeight = NoiseLevel(2.25)
    steps: Steps = AllSteps()
    same_start: bool = True


@dataclass(frozen=True, kw_only=True)
class FlowDPPO(FlowGRPO):
    """Flow-DPPO."""

    sampler: Sampler = Mixed(FlowSDE(0.7), Euler(), 0, 3)
    surrogate: Surrogate = TrustMask(1e-5)
    steps: Steps = AllSteps()


@dataclass(frozen=True, kw_only=True)
class RSMHinge(FlowGRPO):
    """Reward score matching in its zeroth-order form."""

    surrogate: Surrogate = Hinge(1e-4)
    kl: Penalty | None = PerStepKL(0.004, StepLength())
