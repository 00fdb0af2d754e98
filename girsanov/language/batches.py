"""What a preference loss of a language model is computed from: completions, and what is known of them."""

from dataclasses import dataclass

from torch import Tensor

from girsanov.language.model import LanguageModel
from girsanov.language.tokens import Completions
from girsanov.preferences import Compared
from girsanov.types import Batch


@dataclass(frozen=True)
class ComparedBatch(Batch):
    """Compared completions.

    Attributes:
        items: [B, K, L], best first.
        valid: which are there, bool [B, K].
        ref: the reference's log-probs, [B, K].
        score, wins: of each, [B, K].
        sign: +1 good, -1 bad, [B, K]; None where the first is better than the others.
        weight: of the tokens, [B, K, L]; None is 1.
        dispersion: of each prompt, [B].
        odd: each prompt with the completion of another, [B, L'].
        odd_ref: the reference's log-probs of these, [B].
        baseline: z of the whole batch, [B] (one number B times).
        reward: to log, [B, ...].
    """

    items: Completions
    valid: Tensor
    ref: Tensor | None = None
    score: Tensor | None = None
    wins: Tensor | None = None
    sign: Tensor | None = None
    weight: Tensor | None = None
    dispersion: Tensor | None = None
    odd: Completions | None = None
    odd_ref: Tensor | None = None
    baseline: Tensor | None = None
    reward: Tensor | None = None

    def logp(self, model: LanguageModel) -> Tensor:
        """Log-probs [B, K] of the completions, with the weights of their tokens."""
        return weighted_logp(model, self.items, self.weight)

    def record(self, logp: Tensor, divergence: Tensor | None, baseline: Tensor | None = None) -> Compared:
        """What a loss reads, with log-probs [B, K]; ``baseline`` [] goes before that of the batch."""

        def own(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(logp.dtype)

        length = self.items.length if self.weight is None else (self.weight * self.items.own).sum(-1)
        z = self.baseline if baseline is None else baseline
        return Compared(
            logp,
            own(self.ref),
            length.to(logp.dtype),
            own(self.score),
            own(self.wins),
            sign=own(self.sign),
            valid=self.valid,
            dispersion=own(self.dispersion),
            divergence=divergence,
            baseline=own(None if z is None else z.mean()),
        )


def weighted_logp(model: LanguageModel, items: Completions, weight: Tensor | None = None) -> Tensor:
    """Log-probs [B, K] of completions [B, K, L], all in one pass; ``weight`` [B, K, L] is that of their tokens."""
    rows = items.flat()
    found = model.token_logp(rows)
    if weight is not None:
        found = found * weight.flatten(0, 1)[:, : found.shape[1]].to(found)
    return found.sum(1).unflatten(0, items.tokens.shape[:2])
