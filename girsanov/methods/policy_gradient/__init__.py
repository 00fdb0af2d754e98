"""Policy gradients on the sampler's Gaussian transitions, and the parts they are composed of, by name."""

from girsanov.methods.policy_gradient.annealing import AnnealedEta as AnnealedEta
from girsanov.methods.policy_gradient.clipped import ClippedPG as ClippedPG
from girsanov.methods.policy_gradient.credit import (
    NoiseLevel,
    PerTime,
    PlainRatio,
    ProportionalCredit,
    Ratio,
    RatioNorm,
    StepLength,
    StepWeight,
    Uniform,
)
from girsanov.methods.policy_gradient.flash import Compressed
from girsanov.methods.policy_gradient.nodes import FUSIONS as FUSIONS
from girsanov.methods.policy_gradient.nodes import WIDTHS as WIDTHS
from girsanov.methods.policy_gradient.paths import Chains, Paths
from girsanov.methods.policy_gradient.penalty import PathKL, Penalty, PerStepKL
from girsanov.methods.policy_gradient.schedules import SamplerSchedule, Unchanged
from girsanov.methods.policy_gradient.steps import AllSteps, PrunedSteps, RandomSteps, Steps, Subset, WindowSteps
from girsanov.methods.policy_gradient.trees import Trees
from girsanov.methods.policy_gradient.windows import DecayingWindow, ExponentialWindow, RandomWindow, SlidingWindow

RATIOS: dict[str, type[Ratio]] = {"plain": PlainRatio, "ratio-norm": RatioNorm, "proportional": ProportionalCredit}
WEIGHTS: dict[str, type[StepWeight]] = {
    "uniform": Uniform,
    "per-time": PerTime,
    "step-length": StepLength,
    "noise-level": NoiseLevel,
}
PENALTIES: dict[str, type[Penalty]] = {"per-step": PerStepKL, "path": PathKL}
STEPS: dict[str, type[Steps]] = {
    "all": AllSteps,
    "random": RandomSteps,
    "window": WindowSteps,
    "subset": Subset,
    "pruned": PrunedSteps,
}
SCHEDULES: dict[str, type[SamplerSchedule]] = {
    "unchanged": Unchanged,
    "annealed-eta": AnnealedEta,
    "sliding-window": SlidingWindow,
    "random-window": RandomWindow,
    "decaying-window": DecayingWindow,
    "exponential-window": ExponentialWindow,
    "compressed": Compressed,
}
PATHS: dict[str, type[Paths]] = {"chains": Chains, "trees": Trees}
