"""Rewards of texts: ``(prompts, completions) -> scores``, larger is better.

A function in a file of the user's, a trained reward model by its folder, or one of a few that a person can check in the
output. A completion is judged together with its prompt: the word is both.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.rewards.scores import as_scores, check_finite, told


class TextReward(ABC):
    """Scores of completions.

    Attributes:
        name: what messages and reports call it.
    """

    name: str = "reward"

    @abstractmethod
    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> Any:
        """One number a completion."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """Scores [B], float64. Raises GirsanovError if they are not B finite numbers, or the reward raises."""
        try:
            found = self.score(prompts, completions)
        except GirsanovError:
            raise
        except Exception as error:
            raise GirsanovError(f"the reward {self.name!r} raised {told(error)}; mend it") from error
        scores = as_scores(found, len(completions), self.name).double()
        check_finite(scores, self.name)
        return scores


class Vowels(TextReward):
    """10 times the share of vowels in prompt and completion."""

    name = "vowels"

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        """10 times the share."""
        words = [p + c for p, c in zip(prompts, completions, strict=True)]
        return [10 * sum(ch in "aeiou" for ch in w) / max(1, len(w)) for w in words]


class Long(TextReward):
    """The number of characters of prompt and completion."""

    name = "long"

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        """The length."""
        return [float(len(p + c)) for p, c in zip(prompts, completions, strict=True)]


class Short(TextReward):
    """Minus the number of characters."""

    name = "short"

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        """Minus the length."""
        return [-float(len(p + c)) for p, c in zip(prompts, completions, strict=True)]


class EndsWith(TextReward):
    """1 where the completion ends with some letters, 0 elsewhere."""

    name = "ends-with"

    def __init__(self, letters: str = "ing") -> None:
        self.letters = letters

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        """0 or 1."""
        return [float((p + c).endswith(self.letters)) for p, c in zip(prompts, completions, strict=True)]


class Nothing(TextReward):
    """0: where tokens are rewarded, and the whole completion is not."""

    name = "nothing"

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        """Zeros."""
        return [0.0] * len(completions)


class TrainedText(TextReward):
    """A reward model of texts by its folder (``girsanov train-reward`` writes one); empty completions score its least.

    Args:
        path: the folder.
        pessimism: how many standard deviations of an ensemble are subtracted.
        least: the score of an empty completion.
    """

    name = "trained"

    def __init__(self, path: str, pessimism: float = 0.0, least: float = -10.0) -> None:
        self.path, self.pessimism, self.least = str(path), pessimism, least

    @cached_property
    def model(self) -> Any:
        """The reward model, read once."""
        from girsanov.reward_models.model import load_reward_model

        return load_reward_model(self.path, self.pessimism)

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """The model's scores."""
        there = [i for i, c in enumerate(completions) if c.strip()]
        out = torch.full((len(completions),), self.least)
        if there:
            out[there] = self.model.texts([prompts[i] for i in there], [completions[i] for i in there])
        return out


class FunctionTextReward(TextReward):
    """A function ``fn(prompts, completions) -> scores`` of the user's."""

    def __init__(self, fn: Callable[[list[str], list[str]], Any], name: str | None = None) -> None:
        self.fn, self.name = fn, name or str(getattr(fn, "__name__", "reward"))

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> Any:
        """What the function says."""
        return self.fn(list(prompts), list(completions))


def as_text_reward(value: Any, name: str | None = None) -> TextReward:
    """A reward of texts, a class without arguments, or a function, as a reward of texts."""
    if isinstance(value, type) and issubclass(value, TextReward):
        return value()
    if isinstance(value, TextReward):
        return value
    if callable(value):
        return FunctionTextReward(value, name)
    raise GirsanovError(f"a reward of texts is a function fn(prompts, completions) -> scores, not {value!r}")


TEXT_REWARDS: dict[str, type[TextReward]] = {
    "vowels": Vowels,
    "long": Long,
    "short": Short,
    "ends-with": EndsWith,
    "nothing": Nothing,
    "trained": TrainedText,
}
"""Every reward of texts by name."""
