r"""Forward-process methods whose objective is that of a whole group: DGPO and CRD.

DGPO is DPO between the good and the bad part of a group, with the denoising error e standing for ``-log pi``:

.. math:: L = E\big[ \mathrm{sg}[g]\, \max(A_i e_i,\, A_i\, \mathrm{clip}(e_i, e_i^{old} - c, e_i^{old} + c)) \big]
    + \kappa\, \|v - v_{ref}\|^2 / d, \qquad g = \sigma\Big( \frac{\beta}{n} \sum_{group} A_j (e_j - e_j^{ref}) \Big)

Samples of a group share (t, eps). The gate g is 1/2 at the reference and closes as the group is told apart. The clip is
that of a ratio, on errors: what has already moved by c from a fast moving copy, the way its advantage asks, stays.

CRD regresses the centred reward on a centred implicit one, ``R_i = -(e_i - e_i^{old})``:

.. math:: L = \tfrac{1}{b}\, (b (R_i - \bar R) - A_i)^2 + \kappa\, \|v - v_{ref}\|^2 / d

Both need numbers of the whole group (the gate; the mean of R), which a micro-batch does not hold: they are taken down
when the batch is collected, from the policy that starts its updates, so they are exact at the first update. Leaving the
mean of R without a gradient changes nothing there, since the residuals of a group sum to 0.

References: Luo et al. 2025, arXiv:2510.08425 (DGPO; beta 100 with a frozen reference, c from 1e-3 to 1e-2, kappa 1e-3;
the form of the clip as re-told, the copy's decay is not known to us; rollouts guided, losses not); Zhu et al. 2026,
arXiv:2603.14128 (CRD; kappa .1 to a guided reference, a factor 5 more).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.advantages.groups import Groups
from girsanov.methods.base import Turn
from girsanov.methods.forward.draws import Draw, ForwardBatch
from girsanov.methods.forward.errors import ErrorNorm, SelfNormalisedX0, VelocityError
from girsanov.methods.forward.old import OLD, ComparesWithOld, ConstantDecay, DecaySchedule
from girsanov.policy import Policy, Use
from girsanov.precision import as_wide
from girsanov.types import Prompts


def group_mean(values: Tensor, prompts: Prompts, turn: Turn) -> Tensor:
    """The mean of values [B] over each sample's group, over all processes: [B], in the dtype of the values."""
    groups = Groups.of(turn.reduce.gather(prompts.group.to(values.device)))
    every = turn.reduce.gather(as_wide(values).unsqueeze(1))
    return turn.reduce.local(groups.mean(every)).squeeze(1).to(values.dtype)


@dataclass(frozen=True, kw_only=True)
class DGPO(ComparesWithOld):
    """Direct group preference optimisation.

    Attributes:
        beta: how fast the gate closes.
        clip: c, how far an error may move from that of the copy.
        error: e.
    """

    beta: float = 100.0
    clip: float = 1e-2
    kappa: float = 1e-3
    error: ErrorNorm = VelocityError()
    decay: DecaySchedule = ConstantDecay(0.3)
    shared_noise: bool = True

    guided: ClassVar[tuple[Use, ...]] = ("rollout",)

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise GirsanovError(f"beta of a preference loss must be positive, not {self.beta}")
        if not (self.clip > 0 and self.kappa >= 0):
            raise GirsanovError(f"DGPO needs clip > 0 and kappa >= 0, not {self.clip} and {self.kappa}")

    def prepare(self, policy: Policy, batch: ForwardBatch, prompts: Prompts, turn: Turn) -> ForwardBatch:
        """Takes down the gate of every group and draw."""
        gates = list[Tensor]()
        for draw in batch.draws:
            v = self.constants(policy, draw, batch.cond, ("current", "reference"))
            gain = batch.advantage * (self.error(v["current"], draw) - self.error(v["reference"], draw))
            gates.append(torch.sigmoid(self.beta * group_mean(gain, prompts, turn)))
        return batch.with_notes(gates)

    def loss(
        self, v: Tensor, frozen: Mapping[str, Tensor], draw: Draw, batch: ForwardBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``g max(A e, A clip(e))``, and the distance from the reference."""
        assert draw.note is not None
        e, old = self.error(v, draw), self.error(frozen[OLD], draw)
        free = batch.advantage * e
        held = batch.advantage * torch.minimum(torch.maximum(e, old - self.clip), old + self.clip)
        pull, metrics = self.pull(v, frozen)
        share = (held > free).to(e.dtype).mean()
        return draw.note * torch.maximum(free, held) + pull, {
            "gate": draw.note.mean(),
            "clip_fraction": share,
            **metrics,
        }


@dataclass(frozen=True, kw_only=True)
class CRD(ComparesWithOld):
    """Centred reward distillation.

    Attributes:
        b: size of the implicit reward.
        error: e.
    """

    b: float = 1.0
    kappa: float = 0.02
    error: ErrorNorm = SelfNormalisedX0()

    def __post_init__(self) -> None:
        if not (self.b > 0 and self.kappa >= 0):
            raise GirsanovError(f"CRD needs b > 0 and kappa >= 0, not {self.b} and {self.kappa}")

    def prepare(self, policy: Policy, batch: ForwardBatch, prompts: Prompts, turn: Turn) -> ForwardBatch:
        """Takes down the group's mean of the implicit reward of every draw."""
        means = list[Tensor]()
        for draw in batch.draws:
            v = self.constants(policy, draw, batch.cond, ("current", OLD))
            means.append(group_mean(self.error(v[OLD], draw) - self.error(v["current"], draw), prompts, turn))
        return batch.with_notes(means)

    def loss(
        self, v: Tensor, frozen: Mapping[str, Tensor], draw: Draw, batch: ForwardBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``(b (R - mean R) - A)^2 / b``, and the distance from the reference."""
        assert draw.note is not None
        implicit = self.error(frozen[OLD], draw) - self.error(v, draw) - draw.note
        loss = (self.b * implicit - batch.advantage).square() / self.b
        pull, metrics = self.pull(v, frozen)
        return loss + pull, metrics
