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
``baseline``    what single items are compared with (KTO, BCO): ``baseline.py``, new before every update
``dispersion``  mean entropy of the reference along the completions (Mallows)
``divergence``  ``sum_t KL(ref || policy)`` along each completion, with a gradient (TDPO, SuperHF)
==============  ==============================================================================================

References that move (TR-DPO) are a moving copy. Online forms are in ``online.py``.
"""

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.language.base import REFERENCE, LanguageMethod, reference_of, view
from girsanov.language.baseline import baseline, has_baseline, is_mismatched, mismatched
from girsanov.language.batches import ComparedBatch, weighted_logp
from girsanov.language.data import ComparedTexts
from girsanov.language.model import LanguageNet
from girsanov.language.reference import ReferenceCache, digest_of
from girsanov.language.tokens import Completions
from girsanov.methods.base import Chunk, Data, State, Turn
from girsanov.models import ModelLike
from girsanov.policy import Policy
from girsanov.precision import as_wide
from girsanov.preferences import Compared, ImitationLoss, PointLoss, dispersion
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


@dataclass(frozen=True, kw_only=True)
class PreferenceMethod(LanguageMethod):
    """A loss of compared completions.

    Attributes:
        loss: of ``girsanov/preferences``.
    """

    loss: Loss
    _parts: list[ComparedBatch] = field(default_factory=list, init=False, repr=False, compare=False)

    def setup(self, policy: Policy) -> State:
        """Starts the moving reference where the loss moves it."""
        state = super().setup(policy)
        if not isinstance(self.loss.moves, Fixed):
            if policy.model.reference is not None:
                raise GirsanovError("this loss moves its reference, a copy of the policy: leave the other model out")
            policy.keep_copy(REFERENCE)
        return {**state, "updates": 0}

    def needed(self, items: int) -> frozenset[str]:
        """What the loss reads."""
        return needs(self.loss, items)

    def finished(
        self,
        policy: Policy,
        batch: ComparedBatch,
        state: State,
        turn: Turn,
        others: Completions | None = None,
    ) -> ComparedBatch:
        """The batch with what the loss reads besides; ``others`` [B, L] are completions of other prompts."""
        b, k = batch.valid.shape
        wanted, found = self.needed(k), dict[str, Any]()
        reference = reference_of(policy)
        if "ref" in wanted and batch.ref is None:
            found["ref"] = weighted_logp(reference, batch.items, batch.weight)
        if "dispersion" in wanted:
            entropy = reference.mean_entropy(batch.items.flat()).unflatten(0, (b, k)).mean(1)
            found["dispersion"] = dispersion(entropy, cast(LanguageNet, policy.net).vocabulary)
        if is_mismatched(self.loss) and others is not None:
            encoder = view(policy, "current").encoder
            found["odd"] = mismatched(batch.items, others, encoder.max_length, encoder.filler)
            found["odd_ref"] = reference.logp(found["odd"])
        batch = dataclasses.replace(batch, **found)
        self._parts.clear()
        state.pop("baseline", None)
        if has_baseline(self.loss):
            z = baseline(cast(PointLoss, self.loss), policy, [batch], turn.reduce)
            batch = dataclasses.replace(batch, baseline=z.expand(b))
        return batch

    def anchor(self, policy: Policy, batch: Batch, state: State) -> Batch:
        """Keeps the micro-batches of several updates, whose baseline is new before each."""
        assert isinstance(batch, ComparedBatch)
        if has_baseline(self.loss):
            self._parts.append(batch)
        return batch

    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """One chunk: all completions of the micro-batch in one pass."""
        assert isinstance(batch, ComparedBatch)
        model, shape = view(policy, "current"), batch.valid.shape
        logp, divergence = batch.logp(model), None
        if "divergence" in self.needed(shape[1]):
            divergence = model.divergence_from(reference_of(policy), batch.items.flat()).unflatten(0, shape)
        record = batch.record(logp, divergence, state.get("baseline"))
        yield Chunk(self.loss(record), self.numbers(batch, logp.detach()))

    def numbers(self, batch: ComparedBatch, logp: Tensor) -> dict[str, Tensor | float]:
        """What to log: log-probs of the first item, and how often the implicit reward orders the first two as they are
        given; of labelled items, how often it has the sign of the label."""
        moved = logp if batch.ref is None else logp - batch.ref.to(logp.dtype)
        if batch.sign is not None:
            return {"accuracy": _share(moved * batch.sign.to(moved) > 0, batch.valid)}
        found: dict[str, Tensor | float] = {"logp_chosen": logp[:, 0].mean()}
        if logp.shape[1] > 1:
            found["accuracy"] = _share(moved[:, 0] > moved[:, 1], batch.valid[:, 1])
        return found

    @torch.no_grad()
    def after_update(self, policy: Policy, state: State, turn: Turn) -> None:
        """Moves the reference, and the baseline where the batch is used again."""
        state["updates"] += 1
        if REFERENCE in policy.copies:
            current = policy.held("current")
            self.loss.moves.move(policy.copies[REFERENCE], current, state["updates"])
        if self._parts:
            state["baseline"] = baseline(cast(PointLoss, self.loss), policy, self._parts, turn.reduce)

    def deploy(self, policy: Policy, name: str = "current", strength: float = 1.0) -> ModelLike:
        """The named weights at the loss's strength (ExPO goes beyond 1)."""
        return cast(ModelLike, view(policy, name, strength * self.loss.strength))


def _share(right: Tensor, there: Tensor) -> Tensor:
    """The share of what is there that is right, []."""
    return as_wide(right & there).sum() / as_wide(there).sum().clamp_min(1)


@dataclass(frozen=True, kw_only=True)
class OfflinePreference(PreferenceMethod):
    """A preference loss on given comparisons; nothing is sampled.

    Attributes:
        cache: folder for the reference's log-probs, or None.
        emphasis: weight of the tokens of segments that the data marks without one of their own; None takes no notice of
            segments (``segments.py``).
    """

    cache: str | None = None
    emphasis: float | None = None

    data: ClassVar[Data] = "pairs"

    def __post_init__(self) -> None:
        if self.emphasis is not None and not self.emphasis > 0:
            raise GirsanovError(f"the weight of marked segments must be positive, not {self.emphasis}")

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """The comparisons with what the reference says of them."""
        if not isinstance(prompts, ComparedTexts):
            raise GirsanovError("this method learns from comparisons of texts: give a TextComparisons source")
        if prompts.sign is not None and not isinstance(self.loss, PointLoss):
            raise GirsanovError(
                "this loss compares completions, and these are labelled one by one: take kto or bco, or give pairs"
            )
        valid = prompts.valid
        if isinstance(self.loss, ImitationLoss):  # the first completion is the one to imitate
            valid = valid & (torch.arange(valid.shape[1], device=valid.device) == 0)
        weight = None
        if self.emphasis is not None and prompts.weight is not None:
            weight = prompts.weight.nan_to_num(self.emphasis)
        batch = ComparedBatch(
            prompts.items,
            valid,
            ref=self.known(policy, prompts, weight, state, turn),
            score=self.scores(prompts),
            sign=prompts.sign,
            weight=weight,
        )
        return self.finished(policy, batch, state, turn, prompts.others)

    def scores(self, prompts: ComparedTexts) -> Tensor | None:
        """The given scores; None where there are none, and the loss reads none."""
        score = prompts.score
        if score is None:
            return None
        if not bool(score[prompts.valid].isfinite().all()):
            if "score" in self.needed(prompts.valid.shape[1]):
                row = int(prompts.group[(~score.isfinite() & prompts.valid).any(1).cpu()][0])
                raise GirsanovError(f"this loss reads scores and row {row} has none: give one a completion")
            return None
        return torch.where(prompts.valid, score, torch.zeros_like(score))

    def setup(self, policy: Policy) -> State:
        """Works out which file the reference's log-probs are in."""
        return {**super().setup(policy), "reference": "" if self.cache is None else digest_of(policy)}

    def known(
        self, policy: Policy, prompts: ComparedTexts, weight: Tensor | None, state: State, turn: Turn
    ) -> Tensor | None:
        """The reference's log-probs [B, K], read from disk or computed and written there; None without a cache.

        Where one process lacks some all compute theirs: a split network is run by all.
        """
        k = prompts.valid.shape[1]
        if self.cache is None or REFERENCE in policy.copies or "ref" not in self.needed(k):
            return None
        name = f"{state['reference']}-{prompts.source}" + ("" if weight is None else f"-{self.emphasis:g}")
        store = ReferenceCache(self.cache, name, (prompts.total, k))
        found = store.get(prompts.group)
        if float(turn.reduce.mean_host(torch.tensor(float(found is None)))) > 0 or found is None:
            found = weighted_logp(reference_of(policy), prompts.items, weight)
            store.put(prompts.group, found)
        return found.to(policy.device)
