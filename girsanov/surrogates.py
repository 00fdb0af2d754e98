r"""Surrogates of a policy gradient: pure functions of ``log_ratio``, ``advantage`` and ``mask``, shared by images
(K = sampler steps) and language (K = tokens).

With ``rho = exp(log_ratio)`` the ratio of the new to the old likelihood and A the advantage, the loss of one term is

===============  =====================================================================================================
score function   ``-A log rho``
clip             ``-min(rho A, clip(rho, 1 - low, 1 + high) A)``
hinge            ``max(0, c |A| - A log rho)``
trust mask       ``-A rho``, dropped where the divergence exceeds tau and the term pushes further away
===============  =====================================================================================================

At rho = 1 all of them have the gradient ``-A grad log rho``: the policy gradient. They differ in where it vanishes
(``silenced``), and a clip counts only where the sign of A makes it bite: above ``1 + high`` for A > 0, below ``1 -
low`` for A < 0. The ranges belong to ``reduce``, the way a log-ratio was added up over data dimensions: published image
ranges of 1e-4 mean the dimension-mean, which is the true ratio to the power 1/d.

References: Schulman et al. 2017, arXiv:1707.06347, Eq. 7 (clip); Black et al. 2023, arXiv:2305.13301 (score function);
arXiv:2604.17415 (hinge); arXiv:2606.11025 (trust mask).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.precision import as_wide
from girsanov.reductions import Reduction

LIMIT = 30.0
"""Log-ratios are held within +-30 (a ratio of 1e13) before ``exp``, so that no loss and no gradient is NaN."""


class Surrogate(ABC):
    """A loss per term from log-ratio and advantage.

    Attributes:
        reduce: how log-ratios are added up over data dimensions.
        needs_divergence: whether ``divergence`` must be given.
    """

    reduce: Reduction
    needs_divergence: ClassVar[bool] = False

    @abstractmethod
    def loss(self, log_ratio: Tensor, advantage: Tensor, divergence: Tensor | None) -> Tensor:
        """The loss of every term, [B, K]."""

    @abstractmethod
    def silenced(self, log_ratio: Tensor, advantage: Tensor, divergence: Tensor | None) -> Tensor:
        """Where the surrogate takes the gradient away, bool [B, K]."""

    def __call__(
        self, log_ratio: Tensor, advantage: Tensor, mask: Tensor, divergence: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss [B, K], 0 outside the mask, and the share [] of the mask's terms that are silenced.

        Args:
            log_ratio: ``log new - log old``, [B, K].
            advantage: [B] or [B, K].
            mask: bool [B] or [B, K].
            divergence: ``KL(new || old)`` of each term, [B, K]; read by trust regions alone.
        """
        if log_ratio.ndim != 2:
            raise GirsanovError(f"a surrogate takes log-ratios [B, K], not {list(log_ratio.shape)}")
        if self.needs_divergence and divergence is None:
            raise GirsanovError(f"{type(self).__name__} needs the divergence of each term: pass divergence=KL [B, K]")
        a = _spread(advantage, log_ratio).to(log_ratio.dtype)
        kept = _spread(mask, log_ratio)
        loss = torch.where(kept, self.loss(log_ratio, a, divergence), torch.zeros_like(log_ratio))
        with torch.no_grad():
            silent = self.silenced(log_ratio, a, divergence) & kept
            share = as_wide(silent.sum()) / kept.sum().clamp_min(1)
        return loss, share


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """[B] or [B, K] as [B, K]."""
    wide = values.unsqueeze(1) if values.ndim == 1 else values
    if wide.ndim != 2 or len(wide) != len(like) or wide.shape[1] not in (1, like.shape[1]):
        raise GirsanovError(
            f"advantage and mask have shape [B] or [B, K] of the ratios {list(like.shape)}, got {list(values.shape)}"
        )
    return wide.expand_as(like)


def ratio_of(log_ratio: Tensor) -> Tensor:
    """``exp(log_ratio)``, never infinite."""
    return log_ratio.clamp(-LIMIT, LIMIT).exp()


@dataclass(frozen=True)
class ScoreFunction(Surrogate):
    """``-A log rho``: REINFORCE, for one update per batch."""

    reduce: Reduction = "sum"

    def loss(self, log_ratio: Tensor, advantage: Tensor, divergence: Tensor | None) -> Tensor:
        """``-A log rho``."""
        return -advantage * log_ratio

    def silenced(self, log_ratio: Tensor, advantage: Tensor, divergence: Tensor | None) -> Tensor:
        """Nowhere."""
        return torch.zeros_like(log_ratio, dtype=torch.bool)


@dataclass(frozen=True)
class Clip(Surrogate):
    """``-min(rho A, clip(rho, 1 - low, 1 + high) A)``; ``high`` is ``low`` unless given."""

    low: float = 1e-4
    high: float | None = None
    reduce: Reduction = "mean"

    def __post_init__(self) -> None:
        if not 0 < self.low or not 0 < self._high:
            raise GirsanovError(f"a clip range must be positive, not {self.low} and {self._high}")

    @property
    def _high(self) -> float:
        return self.low if self.high is None else self.high

    def loss(self, log_ratio: Tensor, advantage: Tensor, divergence: Tensor | None) -> Tensor:
        """The pessimistic of the plain and the clipped term."""
        rho = ratio_of(log_ratio)
        return torch.maximum(-rho * advantage, -rho.clamp(1 - self.low, 1 + self._high) * advantage)

    def silenced(self, log_ratio: Tensor, advantage: Tensor, divergence: Tensor | None) -> Tensor:
        """Above the range where A > 0, below it where A < 0."""
        rho = ratio_of(log_ratio)
        return ((rho > 1 + self._high) & (advantage > 0)) | ((rho < 1 - self.low) & (advantage < 0))


@dataclass(frozen=True)
class Hinge(Surrogate):
    """``max(0, c |A| - A log rho)``: the clip without an exponential, silent beyond ``log rho = +-c``."""

    c: float = 1e-4
    reduce: Reduction = "mean"

    def __post_init__(self) -> None:
        if not self.c > 0:
            raise GirsanovError(f"a hinge needs a positive range, not {self.c}")

    def loss(self, log_ratio: Tensor, advantage: Tensor, divergence: Tensor | None) -> Tensor:
        """``max(0, c |A| - A log rho)``."""
        return (self.c * advantage.abs() - advantage * log_ratio).clamp_min(0)

    def silenced(self, log_ratio: Tensor, advantage: Tensor, divergence: Tensor | None) -> Tensor:
        """Where ``sign(A) log rho > c``."""
        return advantage * log_ratio > self.c * advantage.abs()


@dataclass(frozen=True)
class TrustMask(Surrogate):
    """``-A rho``, dropped where ``divergence >= tau`` and the term pushes away (rho > 1, A > 0 or rho < 1, A < 0)."""

    tau: float = 1e-5
    reduce: Reduction = "mean"
    needs_divergence: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise GirsanovError(f"a trust region needs a positive size, not {self.tau}")

    def loss(self, log_ratio: Tensor, advantage: Tensor, divergence: Tensor | None) -> Tensor:
        """``-A rho`` where kept, 0 elsewhere."""
        kept = ~self.silenced(log_ratio, advantage, divergence)
        return torch.where(kept, -advantage * ratio_of(log_ratio), torch.zeros_like(log_ratio))

    def silenced(self, log_ratio: Tensor, advantage: Tensor, divergence: Tensor | None) -> Tensor:
        """Outside the region and moving away from it."""
        assert divergence is not None
        return (divergence >= self.tau) & (advantage * log_ratio > 0)


SURROGATES: dict[str, type[Surrogate]] = {
    "clip": Clip,
    "score-function": ScoreFunction,
    "hinge": Hinge,
    "trust-mask": TrustMask,
}
"""Every surrogate by name."""
