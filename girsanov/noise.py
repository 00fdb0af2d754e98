"""Noise that depends on which sample it is for, never on which process or batch draws it.

Each sample has its own generator, keyed by (seed, iteration, stream, sample id). One process and two processes, one
batch and eight micro-batches give the same numbers, and a resumed run needs no generator state: the key is the state.
"""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.precision import widest

NoiseSource = Callable[[Tensor], Tensor]
"""``noise(like [B, *D]) -> standard normal of the same shape``; each call gives the next numbers."""


def generator(key: Sequence[int], device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by a tuple of non-negative integers."""
    seed = int(np.random.SeedSequence(list(key)).generate_state(1, np.uint64)[0])
    return torch.Generator(device=device).manual_seed(seed & 0x7FFF_FFFF_FFFF_FFFF)


class Noise:
    """Normal and uniform numbers for the samples of a batch, each from its own stream.

    Args:
        seed, iteration, stream: the shared part of the key; use another stream for another purpose.
        ids: the samples' ids, [B].
        device: where the numbers are made.
    """

    def __init__(
        self, seed: int, iteration: int, ids: Tensor, stream: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        self.key = (seed, iteration, stream)
        self.device = torch.device(device)
        self.generators = [generator((*self.key, i), device) for i in ids.tolist()]

    def every(self, stride: int) -> "Noise":
        """The streams of every ``stride``-th sample, shared: what they draw is not drawn again here."""
        part = copy.copy(self)
        part.generators = self.generators[::stride]
        return part

    def __call__(self, like: Tensor) -> Tensor:
        """The next standard normal numbers, of the shape, dtype and device of ``like`` [B, *D]."""
        return self.normal(tuple(like.shape[1:]), like.dtype)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """The next standard normal numbers, [B, *shape]."""
        out = torch.empty((len(self.generators), *shape), dtype=dtype, device=self.device)
        for row, g in zip(out, self.generators, strict=True):
            row.normal_(generator=g)
        return out

    def uniform(self, shape: tuple[int, ...] = (), dtype: torch.dtype | None = None) -> Tensor:
        """The next numbers uniform on [0, 1), [B, *shape]; in float64 where the device has it."""
        out = torch.empty((len(self.generators), *shape), dtype=dtype or widest(self.device), device=self.device)
        for row, g in zip(out.view(len(self.generators), -1), self.generators, strict=True):
            row.uniform_(generator=g)
        return out


class Recorded:
    """Noise that was drawn before, handed out in order."""

    def __init__(self, draws: Sequence[Tensor]) -> None:
        self.rest = iter(draws)

    def __call__(self, like: Tensor) -> Tensor:
        """The next one, [B, *D]. Raises GirsanovError when they are used up."""
        draw = next(self.rest, None)
        if draw is None:
            raise GirsanovError("the recorded noise is used up: record one draw for every stochastic step")
        return draw
