"""The methods of language models by name: every preference loss that text alone can feed, and the policy gradients.

``LANGUAGE_METHODS[name](...)`` takes the settings of its loss and those of the method. Which losses compare given texts
and which compare the policy's own is a fact of the loss: those with a selection of sampled items are online.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from girsanov.config.parts import MISSING, parameters
from girsanov.language.base import LanguageMethod
from girsanov.language.online import OnlinePreference
from girsanov.language.policy_gradient import LanguageRL
from girsanov.language.preference import OfflinePreference
from girsanov.preferences import LOSSES
from girsanov.preferences.imitation import ImitationLoss
from girsanov.sequences import SEQUENCE_RL

ELSEWHERE: Mapping[str, str] = {
    "povid": "its second negative is the answer to a noised picture",
    "dense-dpo": "it needs segments that people corrected",
    "diffusion-kto": "it is KTO for images",
    "spin": "it compares the data with samples of the last iterate",
    "nash-md-pg": "its opponent is drawn from a mixture of two models",
    "rto": "its token rewards come from a model tuned by DPO first",
}
"""Losses that are no method of language models here, and why."""

ONLINE = ("oaif", "iterative-dpo", "rso", "optune", "best-of-n", "raft", "rest", "superhf", "sppo")
"""Preference losses on the policy's own completions."""


def method_of(method: type, part: str, factory: Callable[..., Any]) -> Callable[..., LanguageMethod]:
    """A factory whose settings are those of a loss and those of the method around it."""
    inner = parameters(factory)
    own = {k: v for k, v in parameters(method).items() if k != part and k not in inner}

    def make(**values: Any) -> LanguageMethod:
        loss = factory(**{k: v for k, v in values.items() if k in inner})
        found: LanguageMethod = method(**{part: loss}, **{k: v for k, v in values.items() if k in own})
        return found

    every = {**inner, **own}
    fields = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=inspect.Parameter.empty if d is MISSING else d, annotation=a
        )
        for name, (a, d) in every.items()
    ]
    make.__signature__ = inspect.Signature(fields, return_annotation=LanguageMethod)  # type: ignore[attr-defined]
    make.__annotations__ = {name: a for name, (a, _) in every.items()}
    make.__doc__ = inspect.getdoc(factory)
    return make


def sft(length: float = 0.0) -> ImitationLoss:
    """Supervised fine-tuning: minus the log-prob of the first completion."""
    return ImitationLoss(length=length)


def _all() -> dict[str, Callable[..., LanguageMethod]]:
    found: dict[str, Callable[..., LanguageMethod]] = {"sft": method_of(OfflinePreference, "loss", sft)}
    for name, factory in LOSSES.items():
        if name not in ELSEWHERE:
            found[name] = method_of(OnlinePreference if name in ONLINE else OfflinePreference, "loss", factory)
    for name, rl in SEQUENCE_RL.items():
        if name not in ELSEWHERE:
            found[name] = method_of(LanguageRL, "rl", rl)
    return found


LANGUAGE_METHODS: dict[str, Callable[..., LanguageMethod]] = _all()
"""Every method of language models by name."""
