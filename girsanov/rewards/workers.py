"""Who calls a black-box reward: threads (cheap, for rewards that wait or leave the interpreter) or processes (for
rewards that compute in Python, crash or hang: a process can be stopped, a thread cannot).

A worker takes one call at a time and answers with scores, a ``Failed`` or ``TimeoutError``. A process worker is a
spawned interpreter that is killed when a call takes too long, when the pool closes and, by a watch of its own, when
the process that started it is gone.
"""

import io
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Protocol

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.rewards.calls import Call, Failed, answered, opened
from girsanov.rewards.function import load_object
from girsanov.rewards.scores import told
from girsanov.types import Prompts

START_SECONDS = 300.0  # to start an interpreter and to import the reward
LOAD_SECONDS = 3600.0  # to load its weights, perhaps from the hub
USER_MODULE = "girsanov_user_"  # what load_object calls the modules it makes
MAX_LOST_THREADS = 16  # calls that never came back, after which the pool refuses to start more


class Worker(Protocol):
    """Takes one call at a time."""

    def prepare(self) -> None:
        """Loads what the first call would load; raises Failed, GirsanovError or TimeoutError."""
        ...

    def run(self, x: Tensor, prompts: Prompts, timeout: float | None) -> Tensor:
        """Scores [n]; raises Failed or TimeoutError."""
        ...

    def interrupt(self) -> None:
        """From another thread: ends the call at hand, if it can be ended, and refuses further ones."""
        ...

    def close(self) -> None:
        """Frees what the worker holds; called by the thread that runs it."""
        ...


class Workers(ABC):
    """Makes the workers of a pool.

    Attributes:
        count: calls at a time.
    """

    count: int

    @abstractmethod
    def start(self, call: Call) -> Worker:
        """A new worker."""


@dataclass(frozen=True)
class Threads(Workers):
    """Threads of this process. A call that hangs is left behind: it cannot be stopped.

    Attributes:
        count: calls at a time.
    """

    count: int = 2

    def start(self, call: Call) -> Worker:
        """A new worker."""
        return ThreadWorker(call)


@dataclass(frozen=True)
class Processes(Workers):
    """Processes of their own. The reward travels to them once, by pickle, so it must be a module-level function or
    class, or a function loaded from a file; start them under ``if __name__ == "__main__":`` in a script.

    Attributes:
        count: calls at a time.
        threads: torch threads of each.
    """

    count: int = 2
    threads: int = 1

    def start(self, call: Call) -> Worker:
        """A new worker; its process starts at the first call."""
        return ProcessWorker(call, self.threads)


class ThreadWorker:
    """Calls in a fresh daemon thread, which never keeps the interpreter from ending."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.lost: list[threading.Thread] = []
        self.woken, self.closed = threading.Event(), False

    def prepare(self) -> None:
        """Loads in the thread that asks; raises Failed or GirsanovError."""
        opened(*answered(self.call.prepare))

    def run(self, x: Tensor, prompts: Prompts, timeout: float | None) -> Tensor:
        """Scores [n]; raises Failed or TimeoutError."""
        self.lost = [t for t in self.lost if t.is_alive()]
        if len(self.lost) >= MAX_LOST_THREADS:
            raise Failed(f"TimeoutError: {len(self.lost)} calls never came back, and a thread cannot be stopped")
        answers, woken = list[Any](), threading.Event()
        self.woken = woken

        def work() -> None:
            answers.append(answered(self.call, x, prompts))
            woken.set()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        if not self.closed:
            woken.wait(timeout)
        if answers:
            return opened(*answers[0])
        self.lost.append(thread)
        if self.closed:
            raise Failed("RuntimeError: the pool was closed meanwhile")
        raise TimeoutError

    def interrupt(self) -> None:
        """Leaves the call at hand behind: a thread cannot be ended."""
        self.closed = True
        self.woken.set()

    def close(self) -> None:
        """Nothing is held."""


class ProcessWorker:
    """Calls in a spawned process, started when needed and again after it was killed or died."""

    def __init__(self, call: Call, threads: int) -> None:
        self.call, self.threads = call, threads
        self.process: Any = None
        self.pipe: Any = None
        self.closed = False
        self.lock = threading.Lock()

    def prepare(self) -> None:
        """Starts the process, which loads the reward, unless it is there; raises Failed or GirsanovError."""
        if self.process is not None and self.process.is_alive():
            return
        try:
            with self._watched("starting: in a script, begin the run under if __name__ == '__main__':"):
                self._start()
                self._receive(START_SECONDS)
            with self._watched("loading its weights"):
                self._receive(LOAD_SECONDS)
        except (Failed, GirsanovError):
            self.close()
            raise

    def run(self, x: Tensor, prompts: Prompts, timeout: float | None) -> Tensor:
        """Scores [n]; raises Failed or TimeoutError."""
        self.prepare()
        with self._watched("a call"):
            self.pipe.send_bytes(pickle.dumps((x, prompts)))
            return self._receive(timeout)

    @contextmanager
    def _watched(self, place: str) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            self.close()
            raise
        except (EOFError, OSError):
            self.process.join(5)
            code = self.process.exitcode
            self.close()
            raise Failed(f"SystemExit: its process ended (exit code {code}) during {place}") from None

    def _start(self) -> None:
        self.close()
        spawn = multiprocessing.get_context("spawn")
        parcel = pack(self.call)
        with self.lock:
            if self.closed:
                raise Failed("RuntimeError: the pool was closed meanwhile")
            self.pipe, other = spawn.Pipe()
            self.process = spawn.Process(target=serve, args=(other, parcel, self.threads), daemon=True)
            self.process.start()
            other.close()

    def _receive(self, timeout: float | None) -> Any:
        if not self.pipe.poll(timeout):
            raise TimeoutError
        return opened(*pickle.loads(self.pipe.recv_bytes()))

    def interrupt(self) -> None:
        """Kills the process: the call it is at ends in Failed, and none starts after."""
        with self.lock:
            self.closed = True
            if self.process is not None:
                self.process.kill()

    def close(self) -> None:
        """Ends the process and waits until it is gone."""
        with self.lock:
            process, pipe = self.process, self.pipe
            self.process = self.pipe = None
        if process is not None:
            process.kill()
            process.join()
            process.close()
            pipe.close()


class _Pickler(pickle.Pickler):
    """Sends what was loaded from a user's file as the place of that file: it cannot be imported by name."""

    def reducer_override(self, value: Any) -> Any:
        module = getattr(value, "__module__", None)
        if isinstance(value, type | FunctionType) and isinstance(module, str) and module.startswith(USER_MODULE):
            return from_file, (module, sys.modules[module].__file__, value.__qualname__)
        return NotImplemented


def from_file(module: str, path: str, name: str) -> Any:
    """The object ``name`` of the user's file, which is run at the first of them only."""
    loaded = sys.modules.get(module)
    return load_object(f"{path}:{name}") if loaded is None else getattr(loaded, name)


def pack(call: Call) -> bytes:
    """The call as bytes that ``pickle.loads`` of another process understands. Raises GirsanovError if it cannot be."""
    out = io.BytesIO()
    try:
        _Pickler(out).dump(call)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise GirsanovError(
            f"the reward cannot travel to another process ({error}): write it at the top level of a file, or use "
            "Threads()"
        ) from error
    return out.getvalue()


def serve(pipe: Any, parcel: bytes, threads: int) -> None:
    """What a process worker runs: answers calls until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the starting process's to handle
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    torch.set_num_threads(threads)
    try:
        call = pickle.loads(parcel)
    except BaseException as error:  # noqa: BLE001
        pipe.send_bytes(pickle.dumps((Failed, f"{told(error)} (while it was loaded in its process)")))
        return
    pipe.send_bytes(pickle.dumps((None, None)))
    loaded = answered(call.prepare)
    pipe.send_bytes(pickle.dumps(loaded))
    if loaded[0] is not None:
        return
    while True:
        try:
            x, prompts = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        pipe.send_bytes(pickle.dumps(answered(call, x, prompts)))


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
