"""What the methods of language models share: the model of a view, sampled groups, the reference.

They are methods of the training loop (``girsanov/train.py``): a policy over a ``LanguageModel``, requests or
comparisons in, a loss out. All sampling and all statistics are in ``collect``.
"""

from abc import ABC
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from girsanov.clock import phase, scoring
from girsanov.errors import GirsanovError
from girsanov.language.data import text_of
from girsanov.language.generation import NextLaw, Sampling, generate
from girsanov.language.model import LanguageModel
from girsanov.language.rewards import TextReward
from girsanov.language.tokens import Completions, join
from girsanov.methods.base import Method, State, Turn
from girsanov.policy import Policy
from girsanov.precision import onto
from girsanov.types import Prompts

GENERATE, CHOOSE, OPPOSE = 1, 2, 3  # noise streams of sampling, of random selections and of an opponent's sampling
REFERENCE = "moving-reference"


class LanguageMethod(Method, ABC):
    """A way to tune a language model."""

    def setup(self, policy: Policy) -> State:
        """Refuses a policy over anything else."""
        view(policy, "current")
        return {}


def view(policy: Policy, name: str, strength: float = 1.0) -> LanguageModel:
    """A view of the policy as a language model. Raises GirsanovError for a policy over another kind of model."""
    if not isinstance(cast(Any, policy.model), LanguageModel):
        raise GirsanovError("this method tunes a language model: give Policy(LanguageModel(...))")
    return cast(LanguageModel, policy.view(name, "train", strength))


def reference_of(policy: Policy) -> LanguageModel:
    """The reference: the moving one where there is one, another model where one is given, else the policy's start."""
    if REFERENCE not in policy.copies and policy.model.reference is not None:
        return cast(LanguageModel, policy.model.reference)
    return view(policy, REFERENCE if REFERENCE in policy.copies else "reference")


def sampled(
    policy: Policy, prompts: Prompts, sampling: Sampling, turn: Turn, micro_batch: int | None = None
) -> Completions:
    """A completion for every request, by the current weights, [B, L]."""
    model = view(policy, "current")
    asked = [model.encoder.prompt(p) for p in prompts.meta]
    return drawn(model, asked, prompts.ids, sampling, turn, micro_batch)


@phase("rollout")
def drawn(
    model: LanguageModel,
    asked: Sequence[Sequence[int]],
    ids: Tensor,
    sampling: Sampling,
    turn: Turn,
    micro_batch: int | None = None,
    law: NextLaw | None = None,
    stream: int = GENERATE,
) -> Completions:
    """A completion for every prompt (token ids), some at a time, [B, L]; ``ids`` [B] are the keys of their noise."""
    parts = [
        generate(model, [asked[i] for i in rows.tolist()], turn.noise(ids[rows], stream), sampling, law)
        for rows in torch.arange(len(asked)).split(micro_batch or max(1, len(asked)))
    ]
    return join(parts, model.encoder.filler)


def scored(reward: TextReward, model: LanguageModel, prompts: Prompts, rows: Completions) -> Tensor:
    """Rewards [B] of completions, float64 on their device."""
    texts = model.encoder.texts(rows)
    with scoring():
        return onto(reward([text_of(p) for p in prompts.meta], texts), rows.tokens.device)
