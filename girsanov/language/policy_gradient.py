"""Policy gradients on a language model: PPO, RLOO, ReMax, GRPO, P3O, by the parts of ``girsanov/sequences``.

``collect`` draws groups of completions, scores them, and works out advantages; ``losses`` is one pass of the policy.
With one update a batch the old log-probs are those of that pass, detached, so the ratio is 1 to the bit; with several,
``anchor`` scores each micro-batch before the first.

A value head (PPO) is a linear layer on the policy's hidden states, without a gradient into them: the network is the
policy's, the head learns beside it with the rate of the method's modules.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from girsanov.language.base import LanguageMethod, reference_of, sampled, scored, view
from girsanov.language.generation import Sampling
from girsanov.language.model import LanguageModel, spread
from girsanov.language.rewards import TextReward
from girsanov.language.tokens import Completions
from girsanov.methods.base import Chunk, Data, State, Turn
from girsanov.policy import Policy
from girsanov.precision import as_wide
from girsanov.sequences import SequenceRL, Signals, Tokens
from girsanov.sequences.credit import GAE, Credit, Greedy, Whitened
from girsanov.types import Batch, Prompts


@dataclass(frozen=True)
class SampledBatch(Batch):
    """Completions with what they teach.

    Attributes:
        reward: of each completion, [B].
        rows: the completions, [B, L].
        group: the prompt of each, [B].
        advantage: of each token, [B, L].
        mask: which completions carry a signal, bool [B].
        sampled: log-probs when they were drawn, [B, L].
        old: log-probs before the first of several updates, [B, L], or None.
        ref: the reference's, [B, L], or None.
        old_value, target: of the value head, [B, L], or None.
        per: tokens a completion of the batch has on average, over all processes, [B] (one number B times).
    """

    reward: Tensor
    rows: Completions
    group: Tensor
    advantage: Tensor
    mask: Tensor
    sampled: Tensor
    old: Tensor | None = None
    ref: Tensor | None = None
    old_value: Tensor | None = None
    target: Tensor | None = None
    per: Tensor | None = None


class TokenReward(ABC):
    """A reward of single tokens."""

    @abstractmethod
    def prepare(self, policy: Policy) -> None:
        """Loads what it needs, before anything is trained."""

    @abstractmethod
    def __call__(self, policy: Policy, rows: Completions, logp: Tensor) -> Tensor:
        """Rewards [B, L] of the completions' tokens, whose log-probs under the policy are ``logp`` [B, L]."""


def credits_of(credit: Credit) -> tuple[Credit, ...]:
    """A credit and those inside it."""
    return (credit, *credits_of(credit.inner)) if isinstance(credit, Whitened) else (credit,)


@dataclass(frozen=True, kw_only=True)
class LanguageRL(LanguageMethod):
    """A policy gradient.

    Attributes:
        rl: the composition.
        reward: what scores completions.
        dense: what scores their tokens besides, or None.
        sampling: how they are drawn.
        rollout_micro_batch: completions drawn at a time; None is all.
    """

    rl: SequenceRL
    reward: TextReward
    dense: TokenReward | None = None
    sampling: Sampling = Sampling()
    rollout_micro_batch: int | None = None
    _heads: dict[str, nn.Module] = field(default_factory=dict, init=False, repr=False, compare=False)

    data: ClassVar[Data] = "prompts"

    @property
    def has_value(self) -> bool:
        """Whether the credit reads a value head."""
        return any(isinstance(c, GAE) for c in credits_of(self.rl.credit))

    def setup(self, policy: Policy) -> State:
        """Makes the value head, at zero, and loads what token rewards need."""
        state = super().setup(policy)
        if self.dense is not None:
            self.dense.prepare(policy)
        if self.has_value and "value" not in self._heads:
            head = nn.Linear(cast(Any, policy.net).config.hidden_size, 1)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
            self._heads["value"] = head.to(policy.device, policy.dtype)
        return state

    def modules(self) -> dict[str, nn.Module]:
        """The value head."""
        return dict(self._heads)

    def values(self, model: LanguageModel, rows: Completions) -> Tensor:
        """The head's estimate before each token, [B, L]; no gradient into the policy."""
        with torch.no_grad():
            hidden = model.ask(lambda net: net.hidden(rows))
        head = self._heads["value"]
        return spread(head(hidden.to(next(head.parameters()).dtype))[:, 0], rows.own)

    @torch.no_grad()
    def greedy(self, policy: Policy, prompts: Prompts, turn: Turn) -> Tensor:
        """The reward of the likeliest completion of each request's prompt, [B]; asked for once a prompt."""
        kind, first = prompts.group.unique(return_inverse=True)[1], list[int]()
        for g in range(int(kind.max()) + 1):
            first.append(int((kind == g).nonzero()[0]))
        ask = prompts.take(torch.tensor(first))
        best = dataclasses.replace(self.sampling, temperature=0.0)
        rows = sampled(policy, ask, best, turn, self.rollout_micro_batch)
        return scored(self.reward, view(policy, "current"), ask, rows)[kind.to(policy.device)]

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """Draws, scores, and works out advantages."""
        model = view(policy, "current")
        rows = sampled(policy, prompts, self.sampling, turn, self.rollout_micro_batch)
        reward = scored(self.reward, model, prompts, rows)
        logp = model.token_logp(rows)
        ref = reference_of(policy).token_logp(rows) if self.rl.beta or self.rl.kl else None
        value = self.values(model, rows) if self.has_value else None
        baseline = None
        if any(isinstance(c, Greedy) for c in credits_of(self.rl.credit)):
            baseline = self.greedy(policy, prompts, turn)
        tokens = Tokens(
            logp, logp, rows.own, reward.to(logp.dtype), prompts.group.to(logp.device), ref, None, value,
            None if baseline is None else baseline.to(logp.dtype),
            None if self.dense is None else self.dense(policy, rows, logp).to(logp.dtype),
        )  # fmt: skip
        signals = self.rl.signals(tokens, state, turn)
        return SampledBatch(
            reward=reward,
            rows=rows,
            group=tokens.group,
            advantage=signals.advantage.to(logp.dtype),
            mask=signals.mask,
            sampled=logp,
            ref=ref,
            old_value=value,
            target=signals.target,
            per=None if signals.per is None else signals.per.expand(len(reward)),
        )

    @torch.no_grad()
    def anchor(self, policy: Policy, batch: Batch, state: State) -> Batch:
        """The micro-batch with log-probs from the passes that the first update will repeat."""
        assert isinstance(batch, SampledBatch)
        return dataclasses.replace(batch, old=view(policy, "current").token_logp(batch.rows))

    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """One chunk, and the value head's in it."""
        assert isinstance(batch, SampledBatch)
        model = view(policy, "current")
        logp = model.token_logp(batch.rows)
        value = self.values(model, batch.rows) if self.has_value else None
        old = logp.detach() if batch.old is None else batch.old
        tokens = Tokens(
            logp, old, batch.rows.own, batch.reward.to(logp.dtype), batch.group, batch.ref, value, batch.old_value
        )
        per = None if batch.per is None else batch.per.mean()
        loss, numbers = self.rl.loss(tokens, Signals(batch.advantage, batch.mask, batch.target, per))
        gap = torch.where(batch.rows.own, (logp.detach() - old).exp(), torch.ones_like(old))
        numbers = {**numbers, "ratio_min": gap.min(), "ratio_max": gap.max()}
        numbers["length"] = as_wide(batch.rows.length).mean()
        yield Chunk(loss, numbers)
