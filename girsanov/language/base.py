"""What the methods of language models share: the model of a view, sampled groups, the reference.

They are methods of the training loop (``girsanov/train.py``): a policy over a ``LanguageModel``, requests or
comparisons in, a loss out. All sampling and all statistics are in ``collect``.
"""

from abc import ABC
from typing import Any, cast

import torch
from torch import Tensor

from girsanov.clock import phase, scoring
from girsanov.errors import GirsanovError
from girsanov.language.data import text_of
from girsanov.language.generation import Sampling, generate
from girsanov.language.model import LanguageModel
from girsanov.language.rewards import TextReward
from girsanov.language.tokens import Completions, join
from girsanov.methods.base import Method, State, Turn
from girsanov.policy import Policy
from girsanov.types import Prompts

GENERATE, CHOOSE = 1, 2  # noise streams of sampling and of random selections
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
    """The reference: the moving one where there is one."""
    return view(policy, REFERENCE if REFERENCE in policy.copies else "reference")


@torch.no_grad()
def reference_logp(policy: Policy, rows: Completions) -> Tensor:
    """Log-probs [B] of completions under the reference."""
    return reference_of(policy).logp(rows)


@phase("rollout")
def sampled(
    policy: Policy, prompts: Prompts, sampling: Sampling, turn: Turn, micro_batch: int | None = None
) -> Completions:
    """A completion for every request, by the current weights, [B, L]."""
    model = view(policy, "current")
    ids = [model.encoder.prompt(p) for p in prompts.meta]
    noise = Noises(turn, prompts.ids)
    parts = [
        generate(model, [ids[i] for i in rows.tolist()], noise.of(rows), sampling)
        for rows in torch.arange(len(ids)).split(micro_batch or max(1, len(ids)))
    ]
    return join(parts, model.encoder.filler)


class Noises:
    """The noise of the requests, lot by lot."""

    def __init__(self, turn: Turn, ids: Tensor) -> None:
        self.turn, self.ids = turn, ids

    def of(self, rows: Tensor) -> Any:
        """That of some requests."""
        return self.turn.noise(self.ids[rows], GENERATE)


def scored(reward: TextReward, model: LanguageModel, prompts: Prompts, rows: Completions) -> Tensor:
    """Rewards [B] of completions, float64 on their device."""
    texts = model.encoder.texts(rows)
    with scoring():
        return reward([text_of(p) for p in prompts.meta], texts).to(rows.tokens.device)
