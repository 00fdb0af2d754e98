r"""Score as action as it was published: clipped ratios on text to image, clipped displacements on few steps.

====================  ========================================  ====================================================
part                  ctrl-ratio                                ctrl-few-step
====================  ========================================  ====================================================
grid                  50 steps                                  10 steps
value's skip          cosine (Eq. 20)                           tempered (published: an energy network without one)
value's target        the terminal reward                       TD(0), as the code it builds on has it
update                clip 1.5e-5 on the mean over dimensions,  displacement clipped to 0.1, product to 1
                      advantages standardised a step, +-5
price                 none                                      none
====================  ========================================  ====================================================

Neither has a price, so neither has a finite limit: stop early. The released runs pretrain the value for 60 of 100
epochs (Stable Diffusion; AdamW 1e-7) and then take 5e-5 for LoRA weights; few-step: 3e-7, clipping gradients at 0.1.

Reference: Zhao et al. 2025, arXiv:2502.01819, and its code.
"""

from dataclasses import dataclass, field

from girsanov.grids import Grid
from girsanov.methods.continuous.ctrl import CTRL
from girsanov.methods.continuous.few_step import FewStepForm
from girsanov.methods.continuous.price import Price
from girsanov.methods.continuous.ratio import RatioForm
from girsanov.methods.continuous.returns import LambdaReturn, TerminalReward, ValueTarget
from girsanov.methods.continuous.updates import PolicyUpdate
from girsanov.nets.skip import CosineSkip
from girsanov.nets.value import DenoisedReward, ValueDesign


def fifty() -> Grid:
    """50 equal steps."""
    return Grid.uniform(50)


def ten() -> Grid:
    """10 equal steps."""
    return Grid.uniform(10)


@dataclass(frozen=True, kw_only=True)
class CTRLRatio(CTRL):
    """CTRL as its text-to-image code has it."""

    grid: Grid = field(default_factory=fifty)
    value: ValueDesign = DenoisedReward(skip=CosineSkip())
    target: ValueTarget = TerminalReward()
    price: Price | None = None
    update: PolicyUpdate = RatioForm()


@dataclass(frozen=True, kw_only=True)
class CTRLFewStep(CTRL):
    """CTRL for a sampler of ten steps."""

    grid: Grid = field(default_factory=ten)
    target: ValueTarget = LambdaReturn(0.0)
    price: Price | None = None
    update: PolicyUpdate = FewStepForm()
