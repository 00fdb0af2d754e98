"""What the nodes of a tree count: how rewards rise from children to parents, and which leaves are trained on.

Reference: Li et al. 2025, arXiv:2509.06040 and its code (fusion by the mean or by child-edge log-probs; the best leaf
of each branch, or the best and worst of all).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError


class Fusion(ABC):
    """The weights of a node's children."""

    @abstractmethod
    def __call__(self, log_prob: Tensor) -> Tensor:
        """Weights [n, f] that sum to 1, from the children's log-densities [n, f] (a mean over the data)."""


@dataclass(frozen=True)
class MeanFusion(Fusion):
    """All children alike."""

    def __call__(self, log_prob: Tensor) -> Tensor:
        """``1 / f``."""
        return torch.full_like(log_prob, 1 / log_prob.shape[1])


@dataclass(frozen=True)
class LikelihoodFusion(Fusion):
    """Likely children count more."""

    def __call__(self, log_prob: Tensor) -> Tensor:
        """``softmax(log p)``."""
        return log_prob.softmax(1)


class Width(ABC):
    """Which leaves are trained on."""

    @abstractmethod
    def __call__(self, reward: Tensor, fan: int) -> Tensor:
        """Bool [trees, leaves] of the leaves' rewards [trees, leaves] (NaN where one is missing)."""


@dataclass(frozen=True)
class EveryLeaf(Width):
    """All of them."""

    def __call__(self, reward: Tensor, fan: int) -> Tensor:
        """True."""
        return torch.ones_like(reward, dtype=torch.bool)


@dataclass(frozen=True)
class BestChild(Width):
    """The best leaf of each last split."""

    def __call__(self, reward: Tensor, fan: int) -> Tensor:
        """The first of the largest among siblings."""
        siblings = reward.nan_to_num(-torch.inf).view(len(reward), -1, min(fan, reward.shape[1]))
        best = siblings.argmax(2, keepdim=True)
        return torch.zeros_like(siblings, dtype=torch.bool).scatter_(2, best, True).view(reward.shape)


@dataclass(frozen=True)
class Extremes(Width):
    """The best and the worst leaves of each tree, ``share`` of them together."""

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise GirsanovError(f"the share of the leaves that are trained on lies in (0, 1], not {self.share}")

    def __call__(self, reward: Tensor, fan: int) -> Tensor:
        """The ``max(1, share n / 2)`` first and last by reward."""
        n = reward.shape[1]
        ends = max(1, int(self.share * n / 2))
        place = reward.nan_to_num(0.0).argsort(dim=1, stable=True).argsort(1)
        return (place < ends) | (place >= n - ends)


FUSIONS: dict[str, type[Fusion]] = {"mean": MeanFusion, "likelihood": LikelihoodFusion}
WIDTHS: dict[str, type[Width]] = {"every-leaf": EveryLeaf, "best-child": BestChild, "extremes": Extremes}


def fuse(values: Tensor, share: Tensor) -> Tensor:
    """Weighted means [n, R] over the children that have a score, of values [n f, R] with weights [n, f]."""
    v = values.view(*share.shape, -1)
    w = share.unsqueeze(2) * v.isfinite()
    return torch.where(v.isfinite(), v, 0.0).mul(w).sum(1) / w.sum(1)
