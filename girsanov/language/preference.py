r"""Preference losses on a language model, and the offline ones: from given comparisons.

Every loss of ``girsanov/preferences`` is a method: the policy's log-probs of a prompt's K completions, and whatever
else the loss reads, make one record (``Compared``), and the loss does the rest. What it reads is found by asking it: a
record that notes what is needed goes through it once (``needs``), so nothing is computed in vain.

==============  ==============================================================================================
needed          how it is computed
==============  ==============================================================================================
``ref``         one pass of the reference in ``collect``; offline read from disk where it is cached
``length``      tokens of the completion, its end included
``score``       given with the data, or the reward's
``wins``        ``mean_j sigma((r_k - r_j) / T)`` over the group's other completions (online)
``mismatched``  KTO's estimate of the KL: each prompt with the next one's completion, policy against reference, mean
                over all processes, in ``collect``
``dispersion``  mean entropy of the reference along the completions (Mallows)
``divergence``  ``sum_t KL(ref || policy)`` along each completion, with a gradient (TDPO, SuperHF)
==============  ==============================================================================================

References that move (TR-DPO) are a moving copy. Online forms are in ``online.py``.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.language.base import (
    REFERENCE,
    LanguageMethod,
    reference_logp,
    reference_of,
    view,
)
from girsanov.language.data import ComparedTexts
from girsanov.language.model import LanguageNet
from girsanov.language.reference import ReferenceCache, digest_of
from girsanov.language.tokens import Completions, pad
from girsanov.methods.base import Chunk, Data, State, Turn
from girsanov.models import ModelLike
from girsanov.policy import Policy
from girsanov.preferences import Compared, dispersion
from girsanov.preferences.base import Loss
from girsanov.preferences.moves import Fixed
from girsanov.types import Batch, Prompts


class Noting(Compared):
    """A record that notes which of its fields a loss reads."""

    read: set[str]

    def need(self, name: str) -> Tensor:
        """The field, noted."""
        self.read.add(name)
        return super().need(name)


@functools.lru_cache(maxsize=64)
def needs(loss: Loss, items: int = 2) -> frozenset[str]:
    """The fields of ``Compared`` that a loss asks for."""
    some = torch.full((2, items), -1.0)
    fields = {k: some for k in ("ref", "score", "wins", "divergence")}
    record = Noting(some, length=some.abs(), dispersion=torch.ones(2), mismatched=torch.zeros(2), **fields)
    object.__setattr__(record, "read", set())
    loss.rows(record)
    return frozenset(record.read)


@dataclass(frozen=True)
class ComparedBatch(Batch):
    """Completions [B, K, L], which are there, and what is known of them, [B, K] or [B]."""

    items: Completions
    valid: Tensor
    ref: Tensor | None = None
    score: Tensor | None = None
    wins: Tensor | None = None
    dispersion: Tensor | None = None
    mismatched: Tensor | None = None
    reward: Tensor | None = None

    def record(self, logp: Tensor, divergence: Tensor | None) -> Compared:
        """What a loss reads, with log-probs [B, K]."""

        def own(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(logp.dtype)

        baseline = None if self.mismatched is None else self.mismatched.mean()
        return Compared(
            logp,
            own(self.ref),
            self.items.length.to(logp.dtype),
            own(self.score),
            own(self.wins),
            valid=self.valid,
            dispersion=own(self.dispersion),
            divergence=divergence,
            mismatched=own(baseline),
        )


@dataclass(frozen=True, kw_only=True)
class PreferenceMethod(LanguageMethod):
    """A loss of compared completions.

    Attributes:
        loss: of ``girsanov/preferences``.
    """

    loss: Loss

    def setup(self, policy: Policy) -> State:
        """Starts the moving reference where the loss moves it."""
        state = super().setup(policy)
        if not isinstance(self.loss.moves, Fixed):
            policy.keep_copy(REFERENCE)
        return {**state, "updates": 0}

    def needed(self, items: int) -> frozenset[str]:
        """What the loss reads."""
        return needs(self.loss, items)

    def facts(self, policy: Policy, items: Completions, turn: Turn, ref: Tensor | None = None) -> dict[str, Any]:
        """What the loss reads of completions [B, K, L]; ``ref`` [B, K] if it is known already."""
        b, k = items.tokens.shape[:2]
        wanted, found = self.needed(k), dict[str, Any]()
        if "ref" in wanted:
            found["ref"] = reference_logp(policy, items.flat()).unflatten(0, (b, k)) if ref is None else ref
        if "dispersion" in wanted:
            model = reference_of(policy)
            entropy = model.mean_entropy(items.flat()).unflatten(0, (b, k)).mean(1)
            found["dispersion"] = dispersion(entropy, cast(LanguageNet, policy.net).vocabulary)
        if "mismatched" in wanted:
            found["mismatched"] = turn.reduce.mean(mismatched(policy, items)).expand(b)
        return found

    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """One chunk: all completions of the micro-batch in one pass."""
        assert isinstance(batch, ComparedBatch)
        model, rows = view(policy, "current"), batch.items.flat()
        shape = batch.valid.shape
        logp = model.logp(rows).unflatten(0, shape)
        divergence = None
        if "divergence" in self.needed(shape[1]):
            divergence = model.divergence_from(reference_of(policy), rows).unflatten(0, shape)
        yield Chunk(self.loss(batch.record(logp, divergence)), self.numbers(batch, logp.detach()))

    def numbers(self, batch: ComparedBatch, logp: Tensor) -> dict[str, Tensor | float]:
        """What to log: log-probs of the first item, and how often the implicit reward orders the first two right."""
        found: dict[str, Tensor | float] = {"logp_chosen": logp[:, 0].mean()}
        if logp.shape[1] > 1:
            moved = logp if batch.ref is None else logp - batch.ref.to(logp.dtype)
            found["accuracy"] = (moved[:, 0] > moved[:, 1]).double().mean()
        return found

    @torch.no_grad()
    def after_update(self, policy: Policy, state: State, turn: Turn) -> None:
        """Moves the reference."""
        state["updates"] += 1
        if REFERENCE in policy.copies:
            current = policy.state("current")
            self.loss.moves.move(policy.copies[REFERENCE], current, state["updates"])

    def deploy(self, policy: Policy, name: str = "current", strength: float = 1.0) -> ModelLike:
        """The named weights at the loss's strength (ExPO goes beyond 1)."""
        return cast(ModelLike, view(policy, name, strength * self.loss.strength))


def mismatched(policy: Policy, items: Completions) -> Tensor:
    """Mean log-ratio of each prompt with the next prompt's first completion, [] (0 if there is one prompt)."""
    first = Completions(items.tokens[:, 0], items.real[:, 0], items.own[:, 0])
    if len(first) < 2:
        return items.tokens.new_zeros((), dtype=torch.float32)
    rows, starts = [], []
    for i in range(len(first)):
        j = (i + 1) % len(first)
        head = first.tokens[i][first.real[i] & ~first.own[i]].tolist()
        rows.append([*head, *first.tokens[j][first.own[j]].tolist()])
        starts.append(len(head))
    limit = view(policy, "current").encoder.max_length
    batch = pad([r[:limit] for r in rows], starts, 0).to(items.tokens.device)
    with torch.no_grad():
        return (view(policy, "current").logp(batch) - reference_logp(policy, batch)).mean()


@dataclass(frozen=True, kw_only=True)
class OfflinePreference(PreferenceMethod):
    """A preference loss on given comparisons; nothing is sampled.

    Attributes:
        cache: folder for the reference's log-probs, or None.
    """

    cache: str | None = None

    data: ClassVar[Data] = "pairs"

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """The comparisons with what the reference says of them."""
        if not isinstance(prompts, ComparedTexts):
            raise GirsanovError("this method learns from comparisons of texts: give a TextComparisons source")
        facts = self.facts(policy, prompts.items, turn, self.known(policy, prompts, state))
        score = prompts.score
        if score is not None and not bool(score[prompts.valid].isfinite().all()):
            if "score" in self.needed(prompts.valid.shape[1]):
                row = int(prompts.group[(~score.isfinite() & prompts.valid).any(1).cpu()][0])
                raise GirsanovError(f"this loss reads scores and row {row} has none: give one a completion")
            score = None
        if score is not None:
            score = torch.where(prompts.valid, score, torch.zeros_like(score))
        return ComparedBatch(prompts.items, prompts.valid, score=score, **facts)

    def setup(self, policy: Policy) -> State:
        """Works out which file the reference's log-probs are in."""
        return {**super().setup(policy), "reference": "" if self.cache is None else digest_of(policy)}

    def known(self, policy: Policy, prompts: ComparedTexts, state: State) -> Tensor | None:
        """The reference's log-probs [B, K], read from disk or computed and written there; None without a cache."""
        k = prompts.valid.shape[1]
        if self.cache is None or REFERENCE in policy.copies or "ref" not in self.needed(k):
            return None
        store = ReferenceCache(self.cache, f"{state['reference']}-{prompts.source}", (prompts.total, k))
        found = store.get(prompts.group)
        if found is None:
            found = reference_logp(policy, prompts.items.flat()).unflatten(0, (len(prompts), k))
            store.put(prompts.group, found)
        return found.to(policy.device)
