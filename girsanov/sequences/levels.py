r"""Levels: of what the likelihood ratio is taken, and how terms are averaged.

=========  ======================================================  ==================================================
level      log-ratio                                               method
=========  ======================================================  ==================================================
token      of each token                                           PPO, GRPO
sequence   summed over the completion                              RLOO, ReMax, P3O (separate clipping)
pair       the difference of two completions of a prompt           P3O (joint clipping)
=========  ======================================================  ==================================================

*P3O* (pairwise): for two completions of a prompt the gradient is ``(r_1 - r_2) grad [log pi(y_1) - log pi(y_2)] / 2``,
invariant to a constant in the rewards. It is RLOO with two samples a prompt, whose leave-one-out advantages are ``r_1 -
r_2`` and ``r_2 - r_1``; the two differ in what is clipped: each ratio (version 1, the sequence level), or the ratio of
the pair (version 2), of advantage ``(r_1 - r_2) / 2 = (A_1 - A_2) / 4``.

Reference: Wu et al. 2023, arXiv:2310.00212, Eqs. 8 and 9.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.sequences.records import Tokens


class Level(ABC):
    """Of what a ratio is taken."""

    @abstractmethod
    def __call__(self, tokens: Tokens, advantage: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-ratios, advantages and mask [N, K] from advantages [B, L] and a mask of completions [B]."""


@dataclass(frozen=True)
class TokenLevel(Level):
    """Every token by itself."""

    def __call__(self, tokens: Tokens, advantage: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, L]."""
        return tokens.logp - tokens.old, advantage, tokens.mask & mask.unsqueeze(1)


@dataclass(frozen=True)
class SequenceLevel(Level):
    """Whole completions; the advantage is that of the first token."""

    def __call__(self, tokens: Tokens, advantage: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, 1]."""
        ratio = tokens.summed(tokens.logp - tokens.old).unsqueeze(1)
        return ratio, _first(tokens, advantage).unsqueeze(1), mask.unsqueeze(1)


@dataclass(frozen=True)
class PairLevel(Level):
    """Rows 2i and 2i + 1, two completions of one prompt, against each other."""

    def __call__(self, tokens: Tokens, advantage: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B / 2, 1]. Raises GirsanovError if the rows are no pairs."""
        group = tokens.group
        if len(group) % 2 or not bool((group[0::2] == group[1::2]).all()):
            raise GirsanovError(
                "pairs are two completions of one prompt side by side: use an even group_size and train.micro_batch, "
                "and train.minibatches=1"
            )
        ratio, a = tokens.summed(tokens.logp - tokens.old), _first(tokens, advantage)
        both = mask[0::2] & mask[1::2]
        return (ratio[0::2] - ratio[1::2]).unsqueeze(1), ((a[0::2] - a[1::2]) / 4).unsqueeze(1), both.unsqueeze(1)


def _first(tokens: Tokens, advantage: Tensor) -> Tensor:
    where = tokens.mask.to(advantage.dtype).argmax(1, keepdim=True)
    return advantage.gather(1, where).squeeze(1)


LEVELS: dict[str, type[Level]] = {"token": TokenLevel, "sequence": SequenceLevel, "pair": PairLevel}
"""Every level by name."""


class Averaging(ABC):
    """Terms [N, K] to a scalar."""

    @abstractmethod
    def __call__(self, terms: Tensor, mask: Tensor, per: Tensor | None = None) -> Tensor:
        """The average; terms are 0 outside the mask [N, K] of tokens that exist.

        ``per`` [] is how many tokens a completion of the whole batch has on average: a mean over tokens of a
        micro-batch or of one process alone would weigh its tokens by its own number.
        """


@dataclass(frozen=True)
class SequenceMean(Averaging):
    """The mean over each completion's tokens, then over completions (GRPO): long answers weigh less a token."""

    def __call__(self, terms: Tensor, mask: Tensor, per: Tensor | None = None) -> Tensor:
        """Mean of means."""
        return (terms.sum(1) / mask.sum(1).clamp_min(1)).mean()


@dataclass(frozen=True)
class TokenMean(Averaging):
    """The mean over all tokens of the batch (PPO): a completion weighs as much as it is long."""

    def __call__(self, terms: Tensor, mask: Tensor, per: Tensor | None = None) -> Tensor:
        """Sum over the number of tokens, which is ``N per`` where that is known."""
        return terms.sum() / (mask.sum().clamp_min(1) if per is None else len(terms) * per)


@dataclass(frozen=True)
class SequenceSum(Averaging):
    """The sum over tokens, the mean over completions: the unbiased policy gradient."""

    def __call__(self, terms: Tensor, mask: Tensor, per: Tensor | None = None) -> Tensor:
        """Mean of sums."""
        return terms.sum(1).mean()


AVERAGINGS: dict[str, type[Averaging]] = {
    "sequence-mean": SequenceMean,
    "token-mean": TokenMean,
    "sequence-sum": SequenceSum,
}
"""Every way to average by name."""
