"""Black-box rewards in the background: time-outs, retries, and a named answer to failures.

``PooledReward.submit`` hands samples to workers and returns at once, so the next samples are rolled out while these
are scored; ``result`` waits and gives the scores in the order of the samples. A reward that raises, hangs, returns
text, or the wrong number of scores fails for the samples of that call; one that returns NaN fails for those samples.
What a failure means is an object (``failures.py``); one that lets samples pass logs the sentence, the more rarely the
more often it happens.
"""

import logging
import math
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from girsanov.clock import Tally, phase, worked
from girsanov.errors import GirsanovError
from girsanov.rewards.base import Reward
from girsanov.rewards.calls import Call, Failed, as_call
from girsanov.rewards.failures import Drop as Drop
from girsanov.rewards.failures import Fallback as Fallback
from girsanov.rewards.failures import OnFailure as OnFailure
from girsanov.rewards.failures import Raise as Raise
from girsanov.rewards.function import as_reward, load_object
from girsanov.rewards.ray_workers import RayActors
from girsanov.rewards.scores import not_finite
from girsanov.rewards.workers import Processes, Threads, Worker, Workers
from girsanov.types import Cond, Prompts

WORKERS: dict[str, type[Workers]] = {"threads": Threads, "processes": Processes, "ray": RayActors}
"""Every kind of workers by name."""

log = logging.getLogger("girsanov")


class PooledReward(Reward):
    """A black-box reward scored by workers in the background; it gives no gradient.

    Args:
        reward: a Reward, a function ``fn(images, metadata) -> scores``, or ``"my_file.py:fn"``. It is given samples on
            the host.
        workers: ``Threads(count)``, ``Processes(count)`` or ``RayActors(count, gpus=...)``.
        timeout: seconds a call may take; None waits for ever.
        retries: how often a failed call is made again before it counts as failed.
        on_failure: ``Raise()``, ``Drop()`` or ``Fallback(score)``.
        chunk: samples a call; None gives a call everything that is submitted at once.

    Close it, or use it in ``with``, to end its processes at once; they also end with the pool and the interpreter.
    """

    def __init__(
        self,
        reward: Reward | Callable[[Tensor, list[Any]], Any] | str,
        *,
        workers: Workers = Threads(),  # noqa: B008 (frozen)
        timeout: float | None = 300.0,
        retries: int = 0,
        on_failure: OnFailure = Raise(),  # noqa: B008 (frozen)
        chunk: int | None = None,
    ) -> None:
        wrapped = as_reward(load_object(reward) if isinstance(reward, str) else reward)
        self.reward, self.name, self.workers = wrapped, wrapped.name, workers
        self.timeout, self.retries = timeout, retries
        self.failures = 0
        if self.workers.count < 1 or retries < 0 or (chunk is not None and chunk < 1):
            raise GirsanovError("a pool needs at least one worker, at least 0 retries and at least one sample a call")
        if timeout is not None and timeout <= 0:
            raise GirsanovError(f"timeout = {timeout} must be positive, or None to wait for ever")
        self.on_failure, self.chunk = on_failure, chunk
        self._crew = Crew(as_call(wrapped), self.name, self.workers, timeout, retries)
        weakref.finalize(self, self._crew.close)

    def prepare(self, device: torch.device | str = "cpu") -> None:
        """Starts the workers; each loads the reward where it will call it, on the host. Raises GirsanovError."""
        self._crew.prepare()

    def submit(self, x: Tensor, prompts: Prompts) -> "PooledScores":
        """Starts scoring samples [B, *D] and returns at once; the result is [B, 1] in float64 on the host."""
        images = x.detach().cpu()
        rows = torch.arange(len(x)).split(self.chunk or max(1, len(x)))
        one = len(rows) == 1
        parts = [(images, prompts) if one else (images[r], prompts.take(r)) for r in rows]
        return PooledScores([self._crew.put(x, compact(p)) for x, p in parts], [len(r) for r in rows], self)

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """The scores [B], on the device of the samples."""
        return self.submit(x, prompts).result()[:, 0].to(x.device, x.dtype if x.is_floating_point() else None)

    def replacement(self, error: GirsanovError) -> float:
        """The score in place of one that failed. Logs the first, second, fourth, eighth, ... failure."""
        score = self.on_failure(error)
        self.failures += 1
        if self.failures & (self.failures - 1) == 0:
            fate = "dropped" if math.isnan(score) else f"scored {score:g} instead"
            log.warning("%s (%s; failure %d)", error, fate, self.failures)
        return score

    def close(self) -> None:
        """Ends the workers; calls that wait or run end in an error."""
        self._crew.close()

    def __enter__(self) -> "PooledReward":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class PooledScores:
    """Scores on their way from a pool."""

    def __init__(self, futures: Sequence["Future[Tensor]"], sizes: Sequence[int], pool: PooledReward) -> None:
        self.futures, self.sizes, self.pool = futures, sizes, pool

    def result(self) -> Tensor:
        """The scores [B, 1], in the order of the samples; NaN where one was dropped."""
        try:
            with phase("reward"):
                parts = [self._part(f, n) for f, n in zip(self.futures, self.sizes, strict=True)]
        except BaseException:
            for future in self.futures:
                future.cancel()
            raise
        worked(self.pool._crew.busy.take())
        return torch.cat(parts)[:, None]

    def _part(self, future: "Future[Tensor]", n: int) -> Tensor:
        try:
            scores = future.result()
        except GirsanovError as error:
            return torch.full((n,), self.pool.replacement(error), dtype=torch.float64)
        bad = ~scores.isfinite()
        if bool(bad.any()):
            sentence = GirsanovError(not_finite(self.pool.name, int(bad.sum()), n))
            scores = scores.masked_fill(bad, self.pool.replacement(sentence))
        return scores


def compact(prompts: Prompts) -> Prompts:
    """The same requests on the host with only the rows of the tables that they use, so that little has to travel."""
    cond = prompts.cond.to("cpu")
    used, index = cond.index.unique(return_inverse=True)
    return Prompts(Cond({k: v[used] for k, v in cond.tables.items()}, index), prompts.ids, prompts.group, prompts.meta)


class Crew:
    """The workers of a pool, each with a thread that feeds it from one queue."""

    def __init__(self, call: Call, name: str, workers: Workers, timeout: float | None, retries: int) -> None:
        self.call, self.name, self.workers, self.timeout, self.retries = call, name, workers, timeout, retries
        self.jobs: queue.SimpleQueue[tuple[Future[Tensor], Tensor, Prompts] | None] = queue.SimpleQueue()
        self.threads: list[threading.Thread] = []
        self.crew: list[Worker] = []
        self.closed = False
        self.busy = Tally()

    def put(self, x: Tensor, prompts: Prompts) -> "Future[Tensor]":
        """Queues a call; starts the workers if none are at work."""
        if self.closed:
            raise self.over()
        if not self.crew:
            self.employ([self.workers.start(self.call) for _ in range(self.workers.count)])
        future: Future[Tensor] = Future()
        self.jobs.put((future, x, prompts))
        return future

    def prepare(self) -> None:
        """Starts the workers, if none are at work, and lets each load what it needs. Raises GirsanovError."""
        if self.closed:
            raise self.over()
        if self.crew:
            return
        crew = [self.workers.start(self.call) for _ in range(self.workers.count)]
        try:
            with ThreadPoolExecutor(len(crew)) as pool:
                list(pool.map(lambda worker: worker.prepare(), crew))
        except BaseException as error:
            for worker in crew:
                worker.close()
            if isinstance(error, Failed):
                raise GirsanovError(f"the reward {self.name!r} raised {error}; mend it") from None
            raise
        self.employ(crew)

    def employ(self, crew: list[Worker]) -> None:
        """Sets workers to work."""
        self.crew = crew
        self.threads = [threading.Thread(target=self.feed, args=(w,), daemon=True) for w in crew]
        for thread in self.threads:
            thread.start()

    def over(self) -> GirsanovError:
        """What is said once the pool is closed."""
        return GirsanovError(f"the pool of the reward {self.name!r} is closed: make a new one")

    def feed(self, worker: Worker) -> None:
        """Gives a worker one job after another until the pool closes."""
        try:
            while (job := self.jobs.get()) is not None:
                future, x, prompts = job
                if future.set_running_or_notify_cancel():
                    try:
                        with self.busy.timing():
                            scores = self.attempt(worker, x, prompts)
                        future.set_result(scores)
                    except BaseException as error:  # noqa: BLE001 (the one who waits must hear of it)
                        future.set_exception(error)
        finally:
            worker.close()

    def attempt(self, worker: Worker, x: Tensor, prompts: Prompts) -> Tensor:
        """Scores [n] of one job, retries included. Raises GirsanovError."""
        tries = f" ({self.retries + 1} tries)" if self.retries else ""
        error = self.over()
        for _ in range(self.retries + 1):
            if self.closed:
                break
            try:
                return worker.run(x, prompts, self.timeout)
            except TimeoutError:
                error = GirsanovError(
                    f"the reward {self.name!r} gave no answer within {self.timeout:g} s{tries}: raise its timeout, or "
                    "let failures pass with on_failure=drop"
                )
            except Failed as failed:
                error = GirsanovError(
                    f"the reward {self.name!r} raised {failed}{tries}; mend it, or let failures "
                    "pass with on_failure=drop"
                )
            except GirsanovError as sentence:
                error = sentence
        raise error

    def close(self) -> None:
        """Ends the workers and waits for them; may be called twice."""
        if self.closed:
            return
        self.closed = True
        for worker in self.crew:
            worker.interrupt()
            self.jobs.put(None)
        for thread in self.threads:
            if thread is threading.current_thread():  # the collector may run anywhere
                continue
            thread.join(10.0)
