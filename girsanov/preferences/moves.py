r"""Moving references: how far the reference has gone to the policy after an update.

==========  ==============================================  ==========================================================
moves       after update n                                  method
==========  ==============================================  ==========================================================
fixed       stays                                           DPO
soft        ``ref <- a theta + (1 - a) ref`` every tau      TR-DPO
copied      ``ref <- theta`` every tau                      TR-DPO (hard), iterative DPO, self-rewarding
staged      ``ref <- theta`` at given updates               sDPO: the data in chunks, the reference the last chunk's
==========  ==============================================  ==========================================================

With a fixed reference the optimum is tilted by ``r / beta``. A copy makes the next problem start from there: n stages
on the same preferences end at ``pi_ref exp(n r / beta)``, as a fixed reference with ``beta / n`` would.

References: Gorbatovski et al. 2024, arXiv:2404.09656 (TR-DPO); Kim et al. 2024, arXiv:2403.19270 (sDPO); Yuan et al.
2024, arXiv:2401.10020 (self-rewarding).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError


class Moves(ABC):
    """A schedule of the reference."""

    @abstractmethod
    def share(self, update: int) -> float:
        """How much of the way to the policy the reference goes after this update (from 1): 0 stays, 1 copies."""

    @torch.no_grad()
    def move(self, reference: Mapping[str, Tensor], policy: Mapping[str, Tensor], update: int) -> None:
        """Moves the reference's tensors in place."""
        share = self.share(update)
        if share > 0:
            for name, weight in reference.items():
                weight.lerp_(policy[name].to(weight), share)


@dataclass(frozen=True)
class Fixed(Moves):
    """The reference stays."""

    def share(self, update: int) -> float:
        """0."""
        return 0.0


@dataclass(frozen=True)
class Soft(Moves):
    """``alpha`` of the way, every ``every`` updates."""

    alpha: float = 0.6
    every: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1 or self.every < 1:
            raise GirsanovError(
                f"a reference moves by a share in (0, 1] every 1 or more updates, not {self.alpha} every {self.every}"
            )

    def share(self, update: int) -> float:
        """``alpha`` at multiples of ``every``."""
        return self.alpha if update > 0 and update % self.every == 0 else 0.0


@dataclass(frozen=True)
class Copied(Moves):
    """All of the way, every ``every`` updates."""

    every: int = 512

    def __post_init__(self) -> None:
        if self.every < 1:
            raise GirsanovError(f"a reference is copied every 1 or more updates, not every {self.every}")

    def share(self, update: int) -> float:
        """1 at multiples of ``every``."""
        return 1.0 if update > 0 and update % self.every == 0 else 0.0


@dataclass(frozen=True)
class Staged(Moves):
    """All of the way after the updates named: the ends of the chunks of the data."""

    ends: tuple[int, ...] = (1000, 2000)

    def share(self, update: int) -> float:
        """1 at the end of a chunk."""
        return 1.0 if update in self.ends else 0.0


MOVES: dict[str, type[Moves]] = {"fixed": Fixed, "soft": Soft, "copied": Copied, "staged": Staged}
"""Every schedule of the reference by name."""


def extrapolate(aligned: Mapping[str, Tensor], start: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """ExPO: ``aligned + alpha (aligned - start)``, weight by weight; a policy's ``strength = 1 + alpha``.

    Reference: Zheng et al. 2024, arXiv:2404.16792, Eq. 1.

    Raises:
        GirsanovError: the two have other names or shapes.
    """
    if {k: v.shape for k, v in aligned.items()} != {k: v.shape for k, v in start.items()}:
        raise GirsanovError("weights can be extrapolated between two states of one network: names or shapes differ")
    return {k: torch.lerp(start[k].to(w), w, 1 + alpha) if w.is_floating_point() else w for k, w in aligned.items()}
