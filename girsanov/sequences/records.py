"""What reinforcement learning on sequences reads: sampled completions, token by token.

Log-probs are those of the tokens that were drawn. Letters: B completions, L tokens; ``mask`` says which tokens belong
to the completion. A model's forward pass fills ``logp`` (and ``value``), everything else is a constant of the
iteration.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError


@dataclass(frozen=True)
class Tokens:
    """B completions.

    Attributes:
        logp: log-probs under the policy, with its graph, [B, L].
        old: the same under the policy that sampled, [B, L].
        mask: which tokens count, bool [B, L].
        reward: score of each completion, [B].
        group: prompt of each completion, int64 [B].
        ref: log-probs under the reference, [B, L].
        value: the value head's estimate before each token, with its graph, [B, L].
        old_value: the same when the completions were sampled, [B, L].
        greedy: the reward of the greedy completion of the same prompt, [B].
        token_reward: reward of single tokens, [B, L] (RTO).
    """

    logp: Tensor
    old: Tensor
    mask: Tensor
    reward: Tensor
    group: Tensor
    ref: Tensor | None = None
    value: Tensor | None = None
    old_value: Tensor | None = None
    greedy: Tensor | None = None
    token_reward: Tensor | None = None

    def __post_init__(self) -> None:
        wide, rows = ("old", "mask", "ref", "value", "old_value", "token_reward"), ("reward", "group", "greedy")
        for field in dataclasses.fields(self):
            value, name = getattr(self, field.name), field.name
            want = self.logp.shape if name in wide else self.logp.shape[:1] if name in rows else None
            if value is not None and want is not None and value.shape != want:
                raise GirsanovError(f"{name} must have shape {list(want)}, not {list(value.shape)}")
        if self.mask.device.type == "cpu" and not bool(self.mask.any(1).all()):
            row = int((~self.mask.any(1)).nonzero()[0])
            raise GirsanovError(f"completion {row} is empty: leave it out, or let it hold its end token")

    def __len__(self) -> int:
        return len(self.logp)

    def need(self, name: str, what: str) -> Tensor:
        """A field. Raises GirsanovError with what is missing."""
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise GirsanovError(f"this method needs {what}: give Tokens(..., {name}=...)")
        return value

    def summed(self, values: Tensor) -> Tensor:
        """Sums over the completion's tokens, [B]."""
        return torch.where(self.mask, values, torch.zeros_like(values)).sum(1)

    @property
    def last(self) -> Tensor:
        """Where the last token of each completion is, bool [B, L]."""
        after = self.mask.flip(1).cumsum(1).flip(1)
        return self.mask & (after == 1)
