"""Evaluations and pictures by all processes: each draws its lots of the samples, and all get all of them.

The samples 0 .. n - 1 are cut into lots of one size, whatever the number of processes, and process k of P takes the
lots k, k + P, k + 2 P, ... A sample has the noise of its own number, and a lot has the same shape wherever it is drawn,
so what P processes put together is what one process makes, to the bit.

Where a network is split over processes, each pass is a meeting of all. ``together`` therefore lets all of them work on
equally many lots: where none is left for a process, it does the last one once more, and the result is dropped.
``apart`` is for what needs no meeting and would cost twice (a reward on a server): a process without a lot waits.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from girsanov.distributed import Reduce

T = TypeVar("T")
Make = Callable[[Tensor], T]
"""``make(ids [b]) -> what these samples are``, on the host: it travels between processes."""


@dataclass(frozen=True)
class Spread:
    """Work on numbered samples, spread over processes.

    Attributes:
        reduce: the processes; one by default.
    """

    reduce: Reduce = field(default_factory=Reduce)

    def together(self, n: int, lot: int, make: Make[T]) -> list[T]:
        """``make`` of every lot of n samples, in order, on all processes; each calls it equally often."""
        return self._done(n, lot, make, lambda mine, last: min(mine, last))

    def apart(self, n: int, lot: int, make: Make[T]) -> list[T]:
        """The same where no process waits for another in ``make``: each lot is made once."""
        return self._done(n, lot, make, lambda mine, last: mine if mine <= last else None)

    def _done(self, n: int, lot: int, make: Make[T], choose: Callable[[int, int], int | None]) -> list[T]:
        lots, world, found = torch.arange(n).split(lot), self.reduce.world_size, list[T]()
        for first in range(0, len(lots), world):
            own = choose(first + self.reduce.rank, len(lots) - 1)
            found += self._gathered(None if own is None else make(lots[own]))
        return found[: len(lots)]

    def _gathered(self, own: Any) -> Iterable[Any]:
        if self.reduce.world_size == 1:
            return [own]
        every: list[Any] = [None] * self.reduce.world_size
        torch.distributed.all_gather_object(every, own)
        return every
