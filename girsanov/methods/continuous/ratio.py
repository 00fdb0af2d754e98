r"""The ratio form: a clipped policy gradient whose advantage at a step is the increment of the value.

.. math:: A_k = V(x_{k+1}) - V(x_k) + c_k, \qquad
          L = E[\ell(\log\rho_k, A_k)] + \tfrac{c}{2} |mean_\theta - mean_{ref}|^2

``A_k / dt`` estimates the advantage rate along a path (``E[dV + r_run dt] / dt -> q``). Published: the running reward
``c_k`` dropped, each step's advantages standardised over the batch, clipped to +-5, log-ratios averaged over the data
dimensions, clip 1.5e-5. Standardising takes away the weight ``dt`` of a step in ``int q dt``: a step at which V hardly
moves counts as much as any. ``increments`` leaves the advantages as they are; with a price they hold the running
reward, and the price of the step itself (whose derivative a ratio does not see: given ``x_k`` it is the same for every
draw) is added to the loss, divided by d where log-ratios are. Then the policy gradient is that of ``E r - price``.

Reference: Zhao et al. 2025, arXiv:2502.01819, and its code.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.base import Turn
from girsanov.methods.continuous.batch import Part, Seen
from girsanov.methods.continuous.price import Price
from girsanov.methods.continuous.updates import Metrics, PolicyUpdate
from girsanov.precision import as_wide
from girsanov.surrogates import Clip, Surrogate, ratio_of
from girsanov.types import Kernel


class StepAdvantage(ABC):
    """From increments of the value to advantages of one step."""

    @abstractmethod
    def __call__(self, increment: Tensor, turn: Turn) -> Tensor:
        """Advantages [B] from increments [B] of this process's samples (NaN for a dropped one)."""


@dataclass(frozen=True)
class Increments(StepAdvantage):
    """The increments themselves: the weight of a step is its dt."""

    def __call__(self, increment: Tensor, turn: Turn) -> Tensor:
        """``V(x_{k+1}) - V(x_k) + c_k``."""
        return increment


@dataclass(frozen=True)
class Standardised(StepAdvantage):
    """Mean 0 and standard deviation 1 over the batch of all processes, then clipped to ``+-limit``."""

    limit: float = 5.0

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise GirsanovError(f"advantages are clipped to a positive range, not {self.limit}")

    def __call__(self, increment: Tensor, turn: Turn) -> Tensor:
        """``clip((A - mean) / (std + 1e-8))``."""
        every = turn.reduce.gather(increment)
        kept = as_wide(every[every.isfinite()])
        spread = kept.std(correction=0) if len(kept) else kept.sum()
        centred = as_wide(increment) - (kept.mean() if len(kept) else 0.0)
        return (centred / (spread + 1e-8)).clamp(-self.limit, self.limit)


@dataclass(frozen=True)
class RatioForm(PolicyUpdate):
    """Clipped ratios.

    Attributes:
        surrogate: clip, hinge or score function.
        advantage: how increments become advantages.
    """

    surrogate: Surrogate = Clip(1.5e-5, reduce="mean")
    advantage: StepAdvantage = Standardised()

    needs_density: ClassVar[bool] = True
    needs_old: ClassVar[bool] = True

    def trains(self, stochastic: bool, price: Price | None) -> bool:
        """Steps that have a density."""
        return stochastic

    def wants(self, steps: Sequence[int]) -> set[int]:
        """None."""
        return set()

    def signal(self, here: Seen, after: Seen, kernel: Kernel, price: Price | None, turn: Turn) -> Tensor:
        """The advantages of the step, [B]."""
        return self.advantage(as_wide(after.value) - here.value + here.running, turn)

    def loss(self, kernel: Kernel, part: Part, price: Price | None) -> tuple[Tensor, Metrics]:
        """The surrogate and the price of the step."""
        reduce = self.surrogate.reduce
        old = kernel.mean.detach() if part.old is None else part.old
        seen = kernel.log_ratio(old, part.tr.x_s, reduce)
        divergence = kernel.kl(old, reduce).unsqueeze(1) if self.surrogate.needs_divergence else None
        mask = part.signal.isfinite()
        term, silent = self.surrogate(seen.unsqueeze(1), part.signal.nan_to_num(), mask, divergence)
        rho = ratio_of(seen.detach())
        metrics = {"ratio": rho.mean(), "ratio_min": rho.min(), "ratio_max": rho.max(), "clip_fraction": silent}
        loss = term.squeeze(1)
        if price is not None and part.reference is not None:
            paid = price.charge(kernel, part.tr.step, kernel.mean, part.reference)
            loss = loss + paid / (kernel.mean[0].numel() if reduce == "mean" else 1)
            metrics["price"] = paid.detach().mean()
        return loss, metrics


ADVANTAGES: dict[str, type[StepAdvantage]] = {"standardised": Standardised, "increments": Increments}
"""Every way from increments to advantages by name."""
