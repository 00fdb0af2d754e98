r"""A geometric mixture of two language models, token by token: the opponent of Nash-MD-PG.

.. math:: \pi^\mu(y_t | y_{<t}) \propto \pi(y_t | y_{<t})^{1 - a}\, \mu(y_t | y_{<t})^{a}

Over whole completions the mixture ``pi^{1-a} mu^a / Z`` has one normaliser a prompt, and no way to draw from it token
by token; here, as in the paper's own experiments, every next-token law is normalised by itself. The two are the same
for a = 0, a = 1 and completions of one token, and differ else: the law of whole completions is what is written above,
multiplied over t.

Reference: Munos et al. 2023, arXiv:2312.00886, section 7.
"""

from functools import partial
from typing import Any

from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.language.generation import NextLaw, ahead
from girsanov.language.logprobs import wide
from girsanov.language.model import LanguageModel
from girsanov.preferences.games import geometric_mixture


def mixture(model: LanguageModel, other: LanguageModel, share: float) -> NextLaw:
    """The mixture's law of the next token; ``share`` a is that of the other model.

    Raises GirsanovError unless a lies in [0, 1].
    """
    if not 0 <= share <= 1:
        raise GirsanovError(f"the share of a mixture lies in [0, 1], not {share}")

    def law(tokens: Tensor, mask: Tensor, place: Tensor, cache: Any) -> tuple[Tensor, Any]:
        own, others = cache or (None, None)
        p, own = model.ask(partial(ahead, tokens=tokens, mask=mask, place=place, cache=own))
        q, others = other.ask(partial(ahead, tokens=tokens, mask=mask, place=place, cache=others))
        return geometric_mixture(wide(p).log_softmax(-1), wide(q).log_softmax(-1), share), (own, others)

    return law
