"""The methods of language models by name: every preference loss that text alone can feed, and the policy gradients.

``LANGUAGE_METHODS[name](...)`` takes the settings of its loss and those of the method. Which losses compare given texts
and which compare the policy's own is a fact of the loss: those with a selection of sampled items are online.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from girsanov.config.parts import MISSING, parameters
from girsanov.language.base import LanguageMethod
from girsanov.language.game import MixtureGame
from girsanov.language.online import OnlinePreference
from girsanov.language.policy_gradient import LanguageRL
from girsanov.language.preference import OfflinePreference, PreferenceMethod
from girsanov.language.replay import ReplayRL
from girsanov.language.selfplay import SelfPlay
from girsanov.language.token_rewards import rto
from girsanov.preferences import LOSSES
from girsanov.preferences.imitation import ImitationLoss
from girsanov.preferences.pairs import ManyNegatives
from girsanov.preferences.scores import Score
from girsanov.sequences import SEQUENCE_RL

ONLINE = ("oaif", "iterative-dpo", "rso", "optune", "best-of-n", "raft", "rest", "superhf", "sppo")
"""Preference losses on the policy's own completions."""

OTHERWISE: Mapping[str, type[PreferenceMethod]] = {"spin": SelfPlay, "nash-md-pg": MixtureGame}
"""Preference losses with another way to come by completions."""


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


def povid(beta: float = 0.1, positive: float = 1.0) -> ManyNegatives:
    """POVID on text: the chosen completion against all rejected ones of its row at once, in equal shares."""
    return ManyNegatives(score=Score(beta), positive=positive, negatives=None)


def dense_dpo(beta: float = 0.5, emphasis: float = 5.0, cache: str | None = None) -> LanguageMethod:
    """Dense DPO (RLHF-V): the tokens of segments that the data marks weigh more.

    Args:
        beta: scale of the mean log-ratio a weighted token.
        emphasis: weight of segments that have none of their own in the data.
        cache: folder for the reference's log-probs, or None.
    """
    return OfflinePreference(loss=LOSSES["dense-dpo"](beta=beta), emphasis=emphasis, cache=cache)


def _all() -> dict[str, Callable[..., LanguageMethod]]:
    found: dict[str, Callable[..., LanguageMethod]] = {"sft": method_of(OfflinePreference, "loss", sft)}
    for name, factory in LOSSES.items():
        found[name] = method_of(OTHERWISE.get(name) or home(name), "loss", factory)
    for name, rl in SEQUENCE_RL.items():
        found[name] = method_of(LanguageRL, "rl", rl)
    found["povid"] = method_of(OfflinePreference, "loss", povid)
    found.update({"dense-dpo": dense_dpo, "rto": rto, "p3o-on-off": ReplayRL})
    return found


def home(name: str) -> type[PreferenceMethod]:
    """Where a loss gets its completions: from the data, or from the policy."""
    return OnlinePreference if name in ONLINE else OfflinePreference


LANGUAGE_METHODS: dict[str, Callable[..., LanguageMethod]] = _all()
"""Every method of language models by name."""
