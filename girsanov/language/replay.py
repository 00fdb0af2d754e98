r"""P3O with samples on and off policy: each iteration's own completions beside older ones (Fakoor's P3O).

The completion of the same number d iterations back, d drawn evenly from those that are kept, stands beside each new
one, with its advantage of then and the log-probs it was drawn with (the behaviour):

.. math:: L = - E_{on}[A \log\pi] - E_{off}\big[ sg(\min(\rho, c))\, A \log\pi \big]
    + (1 - c)\, E_{off}[\log\beta_{off} - \log\pi], \qquad c = ESS(\rho)

over tokens (``girsanov/sequences/rl.py``). The effective sample size c is that of the whole batch of all processes
under the weights at the start of the iteration, so micro-batches and processes agree on it. The first iteration has no
older completions: its loss is the first term. The survey describes this method where it cites the pairwise one
(``p3o``).

Reference: Fakoor et al. 2019, arXiv:1905.01756, Eq. 8.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.language.base import CHOOSE, LanguageMethod, reference_of, sampled, scored, view
from girsanov.language.generation import Sampling
from girsanov.language.rewards import TextReward
from girsanov.language.tokens import Completions, join
from girsanov.methods.advantages import LeaveOneOut
from girsanov.methods.base import Chunk, Data, State, Turn
from girsanov.policy import Policy
from girsanov.precision import as_wide
from girsanov.sequences import SequenceRL, Signals, Tokens, on_off_loss
from girsanov.sequences.credit import Credit, Outcome
from girsanov.sequences.levels import TokenMean
from girsanov.surrogates import ratio_of
from girsanov.types import Batch, Prompts


@dataclass(frozen=True)
class Drawn:
    """Completions with what they teach.

    Attributes:
        rows: [B, L].
        logp, advantage: log-probs when they were drawn, and advantages, [B, L].
        mask: which carry a signal, bool [B].
    """

    rows: Completions
    logp: Tensor
    advantage: Tensor
    mask: Tensor

    def take(self, index: Tensor) -> "Drawn":
        """The chosen ones."""
        at = index.to(self.logp.device)
        return Drawn(self.rows.take(index), self.logp[at], self.advantage[at], self.mask[at])

    @property
    def kept(self) -> dict[str, Tensor]:
        """As plain tensors, for the method's state."""
        own = {k: getattr(self.rows, k) for k in ("tokens", "real", "own")}
        return {**own, "logp": self.logp, "advantage": self.advantage, "mask": self.mask}

    @classmethod
    def join(cls, parts: list[dict[str, Tensor]], filler: int) -> "Drawn":
        """Kept ones below each other."""
        rows = join([Completions(p["tokens"], p["real"], p["own"]) for p in parts], filler)
        longest = rows.tokens.shape[1]

        def wide(name: str) -> Tensor:
            return torch.cat([torch.nn.functional.pad(p[name], (0, longest - p[name].shape[1])) for p in parts])

        return cls(rows, wide("logp"), wide("advantage"), torch.cat([p["mask"] for p in parts]))


@dataclass(frozen=True)
class ReplayBatch(Batch):
    """New completions and older ones, row by row; ``size`` and the ``per`` of both are one number B times, [B]."""

    reward: Tensor
    group: Tensor
    fresh: Drawn
    per: Tensor
    stale: Drawn | None = None
    stale_per: Tensor | None = None
    size: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class ReplayRL(LanguageMethod):
    """P3O on and off policy.

    Attributes:
        reward: what scores completions.
        credit: rewards to advantages.
        beta: weight of the KL to the reference, as a reward.
        keep: iterations whose completions are kept.
        sampling: how they are drawn.
        rollout_micro_batch: completions drawn at a time; None is all.
    """

    reward: TextReward
    credit: Credit = Outcome(LeaveOneOut())
    beta: float = 0.05
    keep: int = 4
    sampling: Sampling = Sampling()
    rollout_micro_batch: int | None = None

    data: ClassVar[Data] = "prompts"

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise GirsanovError(f"keep the completions of 1 or more iterations, not of {self.keep}")

    def setup(self, policy: Policy) -> State:
        """Nothing is kept yet."""
        return {**super().setup(policy), "replay": []}

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """Draws, scores, and takes older completions out."""
        model = view(policy, "current")
        rows = sampled(policy, prompts, self.sampling, turn, self.rollout_micro_batch)
        reward = scored(self.reward, model, prompts, rows)
        logp = model.token_logp(rows)
        ref = reference_of(policy).token_logp(rows) if self.beta else None
        group = prompts.group.to(logp.device)
        tokens = Tokens(logp, logp, rows.own, reward.to(logp.dtype), group, ref)
        signals = SequenceRL(credit=self.credit, beta=self.beta).signals(tokens, state, turn)
        fresh = Drawn(rows, logp, (signals.advantage * signals.mask.unsqueeze(1)).to(logp.dtype), signals.mask)
        batch = ReplayBatch(reward, group, fresh, mean_length(rows, turn).expand(len(reward)))
        kept = state["replay"]
        if kept:
            batch = dataclasses.replace(batch, **self.older(policy, prompts, kept, turn))
        state["replay"] = [*kept, fresh.kept][-self.keep :]
        return batch

    def older(self, policy: Policy, prompts: Prompts, kept: list[dict[str, Tensor]], turn: Turn) -> dict[str, Any]:
        """Older completions, one beside each new one, and how far off policy they are."""
        model, n = view(policy, "current"), len(prompts)
        u = turn.noise(prompts.ids, CHOOSE).uniform()
        index = (u * len(kept)).long().clamp_max(len(kept) - 1) * n + torch.arange(n)
        stale = Drawn.join(kept, model.encoder.filler).take(index)
        own = stale.rows.own
        rho = ratio_of(model.token_logp(stale.rows) - stale.logp)
        rho = as_wide(torch.where(own, rho, torch.zeros_like(rho)))
        sums = torch.stack([rho.sum(), rho.square().sum(), as_wide(own).sum()])
        total, square, count = turn.reduce.mean(sums)
        size = total.square() / (square * count)
        return {"stale": stale, "stale_per": mean_length(stale.rows, turn).expand(n), "size": size.expand(n)}

    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """One chunk."""
        assert isinstance(batch, ReplayBatch)
        model = view(policy, "current")
        on, signals = self.pass_of(batch.fresh, batch, model.token_logp(batch.fresh.rows), batch.per)
        if batch.stale is None or batch.stale_per is None or batch.size is None:
            terms = torch.where(on.mask, -signals.advantage * on.logp, torch.zeros_like(on.logp))
            yield Chunk(TokenMean()(terms, on.mask, signals.per), {"length": as_wide(batch.fresh.rows.length).mean()})
            return
        off, older = self.pass_of(batch.stale, batch, model.token_logp(batch.stale.rows), batch.stale_per)
        loss, numbers = on_off_loss(on, signals, off, older, batch.size.mean().to(on.logp.dtype))
        yield Chunk(loss, {**numbers, "length": as_wide(batch.fresh.rows.length).mean()})

    def pass_of(self, drawn: Drawn, batch: ReplayBatch, logp: Tensor, per: Tensor) -> tuple[Tokens, Signals]:
        """What the loss reads of one side."""
        reward = batch.reward.to(logp.dtype)
        tokens = Tokens(logp, drawn.logp, drawn.rows.own, reward, batch.group)
        return tokens, Signals(drawn.advantage, drawn.mask, per=per.mean().to(logp.dtype))


def mean_length(rows: Completions, turn: Turn) -> Tensor:
    """Tokens a completion has on average over all processes, float64 []."""
    return turn.reduce.mean(as_wide(rows.length).mean())
