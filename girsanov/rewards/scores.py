"""The shape in which scores travel: ``[B, R]``, one column a reward, perhaps still on their way.

An advantage can so normalise each reward on its own before they are summed (``WeightedSum`` has R > 1, any other
reward R = 1), and a sampler can go on while a slow reward is at work.
"""

import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from girsanov.clock import scoring
from girsanov.errors import GirsanovError
from girsanov.precision import as_wide, onto
from girsanov.rewards.base import Reward
from girsanov.types import Prompts

PACKAGE = Path(__file__).resolve().parent.parent
STDLIB = sysconfig.get_path("stdlib")


class Pending(Protocol):
    """Scores that may still be on their way."""

    def result(self) -> Tensor:
        """Waits, then gives the scores [B, R] on the host or the device of the samples; NaN marks a dropped one."""
        ...


class Done:
    """Scores [B, R] that are there."""

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores

    def result(self) -> Tensor:
        """The scores."""
        return self.scores


class SideBySide:
    """The columns of several pending rewards."""

    def __init__(self, parts: Sequence[Pending]) -> None:
        self.parts = parts

    def result(self) -> Tensor:
        """The columns side by side, [B, R], on the device of the first."""
        columns = [p.result() for p in self.parts]
        return torch.cat([c.to(columns[0].device) for c in columns], dim=1)


def submit(reward: Reward, x: Tensor, prompts: Prompts) -> Pending:
    """Starts scoring decoded samples [B, *D].

    A reward with a ``submit`` of its own (``PooledReward``, a ``WeightedSum``) scores in the background; any other is
    called here and now.
    """
    own = getattr(reward, "submit", None)
    if own is not None:
        return own(x, prompts)
    with scoring():
        scores = as_scores(reward(x, prompts), len(x), reward.name)
    check_finite(scores.detach(), reward.name)
    return Done(scores[:, None])


def weights(reward: Reward) -> Tensor:
    """The weight of each column of a reward's scores, float64 [R]; the weighted sum of the columns is the reward."""
    own = getattr(reward, "column_weights", None)
    return torch.ones(1, dtype=torch.float64) if own is None else own


def total(reward: Reward, scores: Tensor) -> Tensor:
    """The weighted sum [B] of a reward's scores [B, R], in the widest floats of their device."""
    return as_wide(scores) @ onto(weights(reward), scores.device)


def names(reward: Reward) -> tuple[str, ...]:
    """The name of each column of a reward's scores."""
    return tuple(getattr(reward, "column_names", (reward.name,)))


def as_scores(values: Any, n: int, name: str) -> Tensor:
    """What a reward returned (tensor, array, list of numbers) as a floating tensor [n], its graph kept.

    NaN and infinities pass (see ``check_finite``); integers become the default dtype. Raises GirsanovError on text, on
    anything else that is not real numbers, and on another length.
    """
    first = values if isinstance(values, str) else values[0] if isinstance(values, list | tuple) and values else None
    if isinstance(first, str):
        raise GirsanovError(f"the reward {name!r} returned text ({first[:20]!r}): return one number a sample")
    if not isinstance(values, Tensor):
        try:
            values = torch.as_tensor(values, dtype=torch.get_default_dtype())
        except (TypeError, ValueError, RuntimeError):
            raise GirsanovError(
                f"the reward {name!r} returned a {type(values).__name__}: return one number a sample, as a list, an "
                "array or a tensor"
            ) from None
    if values.shape != (n,):
        got = f"{len(values)} scores" if values.ndim == 1 else f"scores of shape {list(values.shape)}"
        raise GirsanovError(f"the reward {name!r} returned {got} for {n} samples: return one number a sample")
    if values.is_complex():
        raise GirsanovError(f"the reward {name!r} returned complex numbers: return one real number a sample")
    return values if values.is_floating_point() else values.to(torch.get_default_dtype())


def check_finite(scores: Tensor, name: str) -> None:
    """Raises GirsanovError if a score [B] is NaN or infinite."""
    bad = int((~scores.isfinite()).sum())
    if bad:
        raise GirsanovError(not_finite(name, bad, len(scores)))


def not_finite(name: str, bad: int, n: int) -> str:
    """The sentence for scores that are NaN or infinite."""
    return (
        f"the reward {name!r} returned NaN or infinity for {bad} of {n} samples: clamp what it divides by or takes the "
        "log of, or let such samples pass with PooledReward(..., on_failure=drop)"
    )


def told(error: BaseException) -> str:
    """``Type: message (file.py, line n)`` in one line, with the last line of the user's own code on the way."""
    place, trace = "", error.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        installed = "site-packages" in path.parts or path.is_relative_to(STDLIB)
        if path.suffix == ".py" and not installed and not path.is_relative_to(PACKAGE):
            place = f" ({path.name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}{place}"
