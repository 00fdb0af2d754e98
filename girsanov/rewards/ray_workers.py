"""Workers of a pool that Ray places: on other processors and GPUs of this machine, or on other machines of a cluster.

Each is an actor with processors and a share of a GPU of its own; it loads the reward once and is given samples on the
host, which it moves to its GPU if it has one. An actor that dies (its machine, its memory) is replaced and the call
made again, once; a second death is a failure of the call. What the reward itself does wrong comes back as its sentence.

Ray starts on this machine unless ``address`` or the environment's RAY_ADDRESS names a cluster. Its machines need the
same packages, and the user's files at the same paths.
"""

import math
import os
import pickle
import threading
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.rewards.calls import Call, Failed, answered, opened
from girsanov.rewards.scores import told
from girsanov.rewards.workers import LOAD_SECONDS, START_SECONDS, Worker, Workers, pack
from girsanov.types import Prompts


@dataclass(frozen=True)
class RayActors(Workers):
    """Actors of Ray. The reward travels to them once, by pickle: a module-level function or class, or the user's file.

    Attributes:
        count: actors, and so calls at a time.
        cpus: processors of each; also its torch threads.
        gpus: GPUs of each; a fraction shares one.
        address: of a cluster; None takes RAY_ADDRESS, or starts Ray on this machine.
        start_seconds: how long to wait until Ray has found a place.
    """

    count: int = 2
    cpus: float = 1.0
    gpus: float = 0.0
    address: str | None = None
    start_seconds: float = START_SECONDS

    def __post_init__(self) -> None:
        if self.cpus < 0 or self.gpus < 0 or self.start_seconds <= 0:
            raise GirsanovError("actors need cpus and gpus of 0 or more, and start_seconds above 0")

    def start(self, call: Call) -> Worker:
        """A new worker; its actor starts at the first call. Raises GirsanovError if Ray is missing."""
        import_ray()
        return RayWorker(call, self)


def import_ray() -> Any:
    """The package. Raises GirsanovError if it is not installed."""
    try:
        import ray
    except ImportError:
        raise GirsanovError("actors need the package ray: pip install 'girsanov[ray]', or use processes") from None
    return ray


def connect(address: str | None) -> Any:
    """Ray, connected. Raises GirsanovError if the cluster does not answer."""
    ray = import_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent unless the user asks for it
    # which is what Ray will do from 2.61 on, and what leaves an actor without GPUs as it is
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with CONNECTING:
        if not ray.is_initialized():
            try:
                ray.init(address=address, log_to_driver=False, logging_level="error")
            except Exception as error:
                raise GirsanovError(
                    f"no cluster of Ray can be used ({told(error)}): check the address, or leave it out to start Ray "
                    "here"
                ) from None
    return ray


LOOK = 0.2  # seconds between looks at whether the pool has been closed
CONNECTING = threading.Lock()


class Scorer:
    """What an actor does. Everything goes in and out as bytes, and errors of the reward as values."""

    def __init__(self, parcel: bytes, threads: int) -> None:
        torch.set_num_threads(threads)
        self.parcel = parcel
        self.call: Any = None
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def ready(self) -> None:
        """Answers once the actor has its place."""

    def prepare(self) -> bytes:
        """Loads the reward and its weights."""

        def load() -> None:
            self.call = pickle.loads(self.parcel)
            self.call.prepare(self.device)

        return pickle.dumps(answered(load))

    def score(self, body: bytes) -> bytes:
        """Scores [n] of a call."""
        x, prompts = pickle.loads(body)
        return pickle.dumps(answered(self.call, x.to(self.device), prompts.to(self.device)))


class RayWorker:
    """Calls in an actor, started when needed and again after it was killed or died."""

    def __init__(self, call: Call, workers: RayActors) -> None:
        self.parcel, self.workers = pack(call), workers
        self.actor: Any = None
        self.closed = False
        self.lock = threading.Lock()

    def prepare(self) -> None:
        """Starts the actor, which loads the reward, unless it is there; raises Failed or GirsanovError."""
        if self.actor is not None:
            return
        ray, w = connect(self.workers.address), self.workers
        with self.lock:
            if self.closed:
                raise Failed("RuntimeError: the pool was closed meanwhile")
            options = {"num_cpus": w.cpus, "num_gpus": w.gpus}
            self.actor = ray.remote(Scorer).options(**options).remote(self.parcel, max(1, int(w.cpus)))
        try:
            self._ask("ready", w.start_seconds)
        except TimeoutError:
            self.close()
            raise GirsanovError(
                f"Ray found no place for an actor with {w.cpus:g} processors and {w.gpus:g} GPUs within "
                f"{w.start_seconds:g} s (the cluster has {owned(ray)}): ask for less, or fewer actors"
            ) from None
        try:
            self._ask("prepare", LOAD_SECONDS)
        except (Failed, GirsanovError):
            self.close()
            raise

    def run(self, x: Tensor, prompts: Prompts, timeout: float | None) -> Tensor:
        """Scores [n]; raises Failed or TimeoutError."""
        body = pickle.dumps((x, prompts))
        try:
            return self._once(body, timeout)
        except Died:
            return self._last(body, timeout)

    def _once(self, body: bytes, timeout: float | None) -> Tensor:
        self.prepare()
        try:
            return self._ask("score", timeout, body)
        except TimeoutError:
            self.close()
            raise

    def _last(self, body: bytes, timeout: float | None) -> Tensor:
        try:
            return self._once(body, timeout)
        except Died as death:
            raise Failed(f"SystemExit: its actor died twice ({death})") from None

    def _ask(self, what: str, timeout: float | None, *args: bytes) -> Any:
        """What the actor answers. Raises Died, TimeoutError, and what the reward raised."""
        ray, actor = import_ray(), self.actor
        if actor is None:
            raise Failed("RuntimeError: the pool was closed meanwhile")
        try:
            asked = getattr(actor, what).remote(*args)
            end = time.monotonic() + (math.inf if timeout is None else timeout)
            while not ray.wait([asked], timeout=min(LOOK, max(0.0, end - time.monotonic())))[0]:
                if self.closed:  # the pool ends: nobody waits for an actor that Ray may never start
                    raise Failed("RuntimeError: the pool was closed meanwhile")
                if time.monotonic() > end:
                    raise TimeoutError
            answer = ray.get(asked)
        except ray.exceptions.RayError as error:
            self.close()
            if self.closed:
                raise Failed("RuntimeError: the pool was closed meanwhile") from None
            raise Died(type(error).__name__) from None
        return None if answer is None else opened(*pickle.loads(answer))

    def interrupt(self) -> None:
        """Kills the actor: the call it is at ends in Failed, and none starts after."""
        self.closed = True
        self.close()

    def close(self) -> None:
        """Ends the actor."""
        with self.lock:
            actor, self.actor = self.actor, None
        ray = import_ray()
        if actor is not None and ray.is_initialized():
            ray.kill(actor)


class Died(Failed):
    """The actor is gone."""


def owned(ray: Any) -> str:
    """What a cluster has, in words."""
    found = ray.cluster_resources()
    return f"{found.get('CPU', 0):g} processors and {found.get('GPU', 0):g} GPUs"
