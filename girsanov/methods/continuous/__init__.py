"""Score as action, continuous-time reinforcement learning of a sampler, and the parts it is composed of, by name."""

from girsanov.methods.continuous.ctrl import CTRL as CTRL
from girsanov.methods.continuous.few_step import FewStepForm as FewStepForm
from girsanov.methods.continuous.price import PRICES as PRICES
from girsanov.methods.continuous.price import EnergyPrice as EnergyPrice
from girsanov.methods.continuous.price import PathKLPrice as PathKLPrice
from girsanov.methods.continuous.published import CTRLFewStep as CTRLFewStep
from girsanov.methods.continuous.published import CTRLRatio as CTRLRatio
from girsanov.methods.continuous.rate import AdvantageRate as AdvantageRate
from girsanov.methods.continuous.rate import GaussianPolicy as GaussianPolicy
from girsanov.methods.continuous.ratio import ADVANTAGES as ADVANTAGES
from girsanov.methods.continuous.ratio import Increments as Increments
from girsanov.methods.continuous.ratio import RatioForm as RatioForm
from girsanov.methods.continuous.ratio import Standardised as Standardised
from girsanov.methods.continuous.returns import TARGETS as TARGETS
from girsanov.methods.continuous.returns import LambdaReturn as LambdaReturn
from girsanov.methods.continuous.returns import TerminalReward as TerminalReward
from girsanov.methods.continuous.trust import TRUST as TRUST
from girsanov.methods.continuous.trust import SquareRootKL as SquareRootKL
from girsanov.methods.continuous.updates import GradientForm as GradientForm
from girsanov.methods.continuous.updates import PolicyUpdate

UPDATES: dict[str, type[PolicyUpdate]] = {"gradient": GradientForm, "ratio": RatioForm, "few-step": FewStepForm}
"""Every policy update by name."""
