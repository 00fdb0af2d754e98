"""Where the time of an iteration goes: every second of it belongs to one phase.

``lap(name)`` books the time since the last lap. What comes before the first lap, the collection of a batch, is split
where it happens: ``with phase("rollout")`` around a part takes its seconds out of the lap, so that the phases still
add up to the iteration. Outside of an iteration ``phase`` does nothing, and the code that says it need not know of
any clock: the one that runs is found through a context variable, which other threads do not see.

On an accelerator the clock waits for the device wherever a phase begins or ends (a dozen times an iteration), since a
kernel that was only queued would else be booked under the phase that happens to wait for it. FLOPs are booked beside
the seconds (``passes.py`` counts them), and so is what a reward worked in the background, which is no phase: it
overlaps with others.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

REWARD_WORK = "speed/reward_work"


@dataclass
class Span:
    """What an open part of an iteration has used so far, without the parts inside it."""

    seconds: float = 0.0
    flops: float = 0.0

    def add(self, other: "Span") -> None:
        """Adds another part's use."""
        self.seconds += other.seconds
        self.flops += other.flops


class Clock:
    """Seconds and FLOPs of each phase of an iteration.

    Args:
        device: of the network.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device
        self.phases: dict[str, Span] = {}
        self.open = [Span()]
        self.reward_work = 0.0
        self.splitting = True
        self.last = time.perf_counter()

    @classmethod
    @contextmanager
    def running(cls, device: torch.device | None = None) -> Iterator["Clock"]:
        """A clock that ``phase`` and ``current`` find within the block, however that ends."""
        clock = cls(device)
        token = CURRENT.set(clock)
        try:
            yield clock
        finally:
            CURRENT.reset(token)

    def lap(self, name: str) -> None:
        """Books what came since the last lap under ``name``."""
        self._advance()
        self._book(name, self.open[-1])
        self.open[-1], self.splitting = Span(), False

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Takes a part out of the lap that it lies in; parts may lie in parts."""
        self._advance()
        self.open.append(Span())
        try:
            yield
        finally:
            self._advance()
            self._book(name, self.open.pop())

    def seconds(self, name: str) -> float:
        """What is booked under a name so far."""
        return self.phases[name].seconds if name in self.phases else 0.0

    def count(self, flops: float) -> None:
        """Books FLOPs on the part that is open."""
        self.open[-1].flops += flops

    def result(self) -> dict[str, float]:
        """``time/PHASE`` in seconds, ``flops/PHASE`` where any were counted."""
        found = {f"time/{name}": span.seconds for name, span in self.phases.items()}
        found |= {f"flops/{name}": span.flops for name, span in self.phases.items() if span.flops}
        return found | ({REWARD_WORK: self.reward_work} if self.reward_work else {})

    def _advance(self) -> None:
        wait_for(self.device)
        now = time.perf_counter()
        self.open[-1].seconds += now - self.last
        self.last = now

    def _book(self, name: str, span: Span) -> None:
        self.phases.setdefault(name, Span()).add(span)


CURRENT: ContextVar[Clock | None] = ContextVar("clock", default=None)


def current() -> Clock | None:
    """The clock of the iteration at hand, if this thread is in one."""
    return CURRENT.get()


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Books a part of a batch's collection under a name of its own (in the losses it belongs to them)."""
    clock = CURRENT.get()
    if clock is None or not clock.splitting:
        yield
        return
    with clock.phase(name):
        yield


@contextmanager
def scoring() -> Iterator[None]:
    """A reward that is called here and now: it works while the iteration waits for it."""
    clock = CURRENT.get()
    before = 0.0 if clock is None else clock.seconds("reward")
    with phase("reward"):
        yield
    if clock is not None:
        clock.reward_work += clock.seconds("reward") - before


def worked(seconds: float) -> None:
    """Adds what a reward worked in the background."""
    clock = CURRENT.get()
    if clock is not None:
        clock.reward_work += seconds


class Tally:
    """Seconds that calls in several threads take together."""

    def __init__(self) -> None:
        self.seconds, self.lock = 0.0, threading.Lock()

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Adds what the block takes, also when it raises."""
        began = time.perf_counter()
        try:
            yield
        finally:
            with self.lock:
                self.seconds += time.perf_counter() - began

    def take(self) -> float:
        """The seconds of all that have ended since this was last asked."""
        with self.lock:
            seconds, self.seconds = self.seconds, 0.0
        return seconds


def wait_for(device: torch.device | None) -> None:
    """Waits until a device has done what was asked of it; a processor has at once."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device is not None and device.type == "mps":
        torch.mps.synchronize()
