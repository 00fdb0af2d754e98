"""A reward as what workers and servers call: samples on the host to scores on the host, no graph."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.rewards.base import Reward
from girsanov.rewards.function import FunctionReward
from girsanov.rewards.scores import as_scores, told
from girsanov.types import Prompts


class Failed(Exception):
    """A call that ended in an error, which the message tells in a line."""


class Call(Protocol):
    """``call(x [n, *D], prompts) -> scores [n] on the host``."""

    def prepare(self, device: torch.device | str = "cpu") -> None:
        """Loads what the first call would load, for samples on ``device``."""
        ...

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Scores [n]."""
        ...


@dataclass(frozen=True)
class FunctionCall:
    """``fn(images, metadata)`` as a call of workers."""

    fn: Callable[[Tensor, list[Any]], Any]
    name: str

    def prepare(self, device: torch.device | str = "cpu") -> None:
        """Nothing: a function loads what it needs when it is imported or called."""

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        return host(as_scores(self.fn(x, list(prompts.meta)), len(x), self.name))


@dataclass(frozen=True)
class RewardCall:
    """``reward(x, prompts)`` as a call of workers."""

    reward: Reward

    def prepare(self, device: torch.device | str = "cpu") -> None:
        """The reward's weights, where its samples are."""
        self.reward.prepare(device)

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        return host(as_scores(self.reward(x, prompts), len(x), self.reward.name))


def host(scores: Tensor) -> Tensor:
    """The scores as float64 on the host, without a graph."""
    return scores.detach().to("cpu", torch.float64)


def as_call(reward: Reward) -> Call:
    """What workers run: a user's function without the check that would refuse a whole batch for one NaN."""
    return FunctionCall(reward.fn, reward.name) if isinstance(reward, FunctionReward) else RewardCall(reward)


def answered(act: Callable[..., Any], *args: Any) -> tuple[type[Exception] | None, Any]:
    """(None, what ``act(*args)`` returns without a graph), or the class of an error to raise, and its message."""
    try:
        with torch.no_grad():
            return None, act(*args)
    except BaseException as error:  # noqa: BLE001 (also SystemExit of somebody's function)
        return (GirsanovError, str(error)) if isinstance(error, GirsanovError) else (Failed, told(error))


def opened(error: type[Exception] | None, value: Any) -> Any:
    """What ``answered`` brought, raised or returned."""
    if error is not None:
        raise error(value)
    return value
