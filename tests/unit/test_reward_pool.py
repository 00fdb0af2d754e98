"""Rewards in the background: order kept, one sentence for each way to fail, nothing left running."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch

from girsanov.errors import GirsanovError
from girsanov.rewards.base import Reward
from girsanov.rewards.pool import Drop, Fallback, PooledReward, Raise
from girsanov.rewards.scores import submit
from girsanov.rewards.workers import Processes, Threads
from girsanov.types import Cond, Prompts

PASS = "or let failures pass with on_failure=drop"


def requests(n):
    cond = Cond({"label": torch.arange(n) * 10}, torch.arange(n))
    return Prompts(cond, torch.arange(n), torch.arange(n), tuple(range(n)))


def images(n):
    return torch.arange(n, dtype=torch.float32)[:, None].expand(n, 4)


def sums(x, meta):
    return x.sum(1) + torch.tensor(meta)


def hangs(x, meta):
    time.sleep(30)


def raises(x, meta):
    raise ValueError("no such\n font")


def nan(x, meta):
    return [float("nan") if m == 1 else float(m) for m in meta]


LINE = f"test_reward_pool.py, line {raises.__code__.co_firstlineno + 1}"


BAD = {
    "raises": (raises, f"the reward 'raises' raised ValueError: no such font ({LINE}); mend it, {PASS}"),
    "hangs": (hangs, f"the reward 'hangs' gave no answer within 0.1 s: raise its timeout, {PASS}"),
    "nan": (
        nan,
        "the reward 'nan' returned NaN or infinity for 1 of 4 samples: clamp what it divides by or takes the log of, "
        "or let such samples pass with PooledReward(..., on_failure=drop)",
    ),
    "short": (
        lambda x, meta: [1.0, 2.0],
        "the reward '<lambda>' returned 2 scores for 4 samples: return one number a sample",
    ),
    "text": (
        lambda x, meta: ["good"] * 4,
        "the reward '<lambda>' returned text ('good'): return one number a sample",
    ),
    "one text": (lambda x, meta: "fine", "the reward '<lambda>' returned text ('fine'): return one number a sample"),
    "none": (
        lambda x, meta: None,
        "the reward '<lambda>' returned a NoneType: return one number a sample, as a list, an array or a tensor",
    ),
    "shape": (
        lambda x, meta: x,
        "the reward '<lambda>' returned scores of shape [4, 4] for 4 samples: return one number a sample",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_reward_gives_one_sentence(case):
    fn, sentence = BAD[case]
    with PooledReward(fn, timeout=0.1) as pool, pytest.raises(GirsanovError) as error:
        pool(images(4), requests(4))
    assert str(error.value) == sentence


@pytest.mark.parametrize("case", BAD)
def test_failures_can_pass(case, caplog):
    fn, sentence = BAD[case]
    lost = [False, True, False, False] if case == "nan" else [True] * 4
    with caplog.at_level(logging.WARNING), PooledReward(fn, timeout=0.1, on_failure=Drop()) as pool:
        assert pool(images(4), requests(4)).isnan().tolist() == lost
    assert caplog.messages == [f"{sentence} (dropped; failure 1)"]
    with PooledReward(fn, timeout=0.1, on_failure=Fallback(-3.0)) as pool:
        assert (pool(images(4), requests(4)) == -3.0).tolist() == lost
    assert caplog.messages[-1] == f"{sentence} (scored -3 instead; failure 1)"


def test_frequent_failures_are_logged_rarely(caplog):
    with caplog.at_level(logging.WARNING), PooledReward(nan, chunk=1, on_failure=Drop()) as pool:
        for _ in range(9):
            pool(images(4), requests(4))
    assert [m.rpartition(" ")[2] for m in caplog.messages] == ["1)", "2)", "4)", "8)"] and pool.failures == 9


def test_only_the_failed_call_is_dropped():
    def third(x, meta):
        if 2 in meta:
            raise OSError("gone")
        return x.sum(1)

    with PooledReward(third, chunk=1, on_failure=Drop()) as pool:
        scores = pool(images(5), requests(5))
    assert scores.isnan().tolist() == [False, False, True, False, False]
    assert scores[[0, 1, 3, 4]].tolist() == [0.0, 4.0, 12.0, 16.0]


def test_order_is_kept_whatever_finishes_first():
    def slow_first(x, meta):
        time.sleep(0.05 * (3 - meta[0]))
        return [float(m) for m in meta]

    with PooledReward(slow_first, workers=Threads(4), chunk=1) as pool:
        assert pool(images(4), requests(4)).tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_failed_call_is_made_again():
    calls = []

    def third_time(x, meta):
        calls.append(len(x))
        if len(calls) < 3:
            raise ConnectionError("busy")
        return [1.0] * len(x)

    with PooledReward(third_time, retries=2) as pool:
        assert pool(images(2), requests(2)).tolist() == [1.0, 1.0]
    calls.clear()
    with PooledReward(third_time, retries=1) as pool, pytest.raises(GirsanovError) as error:
        pool(images(2), requests(2))
    place = f"(test_reward_pool.py, line {third_time.__code__.co_firstlineno + 3})"
    said = f"the reward 'third_time' raised ConnectionError: busy {place} (2 tries); mend it, {PASS}"
    assert str(error.value) == said


def test_submitting_returns_while_the_reward_is_at_work():
    gate = threading.Event()

    def waits(x, meta):
        gate.wait(10)
        return x.sum(1)

    with PooledReward(waits) as pool:
        pending = submit(pool, images(3), requests(3))  # a reward in the foreground would never let go
        gate.set()
        assert pending.result().tolist() == [[0.0], [4.0], [8.0]]


def test_a_reward_sees_its_own_conditions_on_the_host_without_a_graph():
    class Labels(Reward):
        name = "labels"

        def __call__(self, x, prompts):
            assert not x.requires_grad and not torch.is_grad_enabled()
            assert len(prompts.cond.tables["label"]) == len(x)
            return prompts.cond["label"]  # integers

    with PooledReward(Labels(), chunk=2) as pool:
        x = images(5).clone().requires_grad_(True)
        scores = pool(x, requests(5))
    assert scores.tolist() == [0.0, 10.0, 20.0, 30.0, 40.0] and scores.dtype == x.dtype
    assert not pool.differentiable


def test_calls_that_never_come_back_are_not_started_for_ever():
    with PooledReward(hangs, workers=Threads(1), timeout=0.01, on_failure=Fallback(0.0), retries=15) as pool:
        pool(images(1), requests(1))
        pool.on_failure = Raise()
        with pytest.raises(GirsanovError, match="16 calls never came back, and a thread cannot be stopped"):
            pool(images(1), requests(1))


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        (
            lambda: PooledReward(sums, workers=Threads(0)),
            "a pool needs at least one worker, at least 0 retries and at least one sample a call",
        ),
        (lambda: PooledReward(sums, timeout=0), "timeout = 0 must be positive, or None to wait for ever"),
        (lambda: PooledReward(3), "a reward is a function fn(images, prompts) -> scores, not a int"),
        (
            lambda: PooledReward(lambda x, m: x.sum(1), workers=Processes(1))(images(1), requests(1)),
            None,
        ),
    ],
)
def test_a_wrong_pool_gives_one_sentence(wrong, sentence):
    with pytest.raises(GirsanovError) as error:
        wrong()
    if sentence is None:
        assert str(error.value).startswith("the reward cannot travel to another process (")
        assert str(error.value).endswith("): write it at the top level of a file, or use Threads()")
    else:
        assert str(error.value) == sentence


def test_closing_does_not_wait_for_a_call_that_hangs():
    gate = threading.Event()
    pool = PooledReward(lambda x, meta: gate.wait(60), workers=Threads(1), timeout=None, chunk=1)
    pending = pool.submit(images(2), requests(2))
    start = time.perf_counter()
    pool.close()
    assert time.perf_counter() - start < 5
    with pytest.raises(GirsanovError):
        pending.result()
    gate.set()


def test_a_closed_pool_says_so():
    pool = PooledReward(sums)
    assert pool(images(2), requests(2)).tolist() == [0.0, 5.0]
    pool.close()
    pool.close()
    with pytest.raises(GirsanovError) as error:
        pool(images(2), requests(2))
    assert str(error.value) == "the pool of the reward 'sums' is closed: make a new one"


USER_FILE = """
import os
import time
import torch
from girsanov.rewards.base import Reward

def score(images, prompts):
    if prompts[0] == 7:
        time.sleep(60)
    if prompts[0] == 8:
        os._exit(3)
    return [float(os.getpid())] * len(images) if prompts[0] == 9 else images.sum(1) + torch.tensor(prompts)

class Scale(Reward):
    name, loaded_in = "scale", 0
    def __init__(self, by):
        self.by = by
    def prepare(self, device="cpu"):
        self.loaded_in = os.getpid()
    def __call__(self, x, prompts):
        return self.by * x.sum(1) if self.loaded_in == os.getpid() else x.sum(1) / 0
"""


@pytest.fixture
def user_file(tmp_path):
    path = tmp_path / "my_reward.py"
    path.write_text(USER_FILE)
    return path


def test_a_process_is_killed_when_it_hangs_replaced_when_it_dies_and_gone_in_the_end(user_file):
    def ask(first):
        return Prompts(requests(2).cond, torch.arange(2), torch.arange(2), (first, 0))

    with PooledReward(f"{user_file}:score", workers=Processes(1), timeout=2.0) as pool:
        assert pool(images(2), requests(2)).tolist() == [0.0, 5.0]
        first = int(pool(images(2), ask(9))[0])
        assert first != os.getpid()
        with pytest.raises(GirsanovError) as error:
            pool(images(2), ask(7))
        assert str(error.value) == f"the reward 'score' gave no answer within 2 s: raise its timeout, {PASS}"
        assert not running(first)
        with pytest.raises(GirsanovError) as error:
            pool(images(2), ask(8))
        sentence = "the reward 'score' raised SystemExit: its process ended (exit code 3) during a call; mend it, "
        assert str(error.value) == sentence + PASS
        last = int(pool(images(2), ask(9))[0])
        pending = pool.submit(images(2), ask(7))
        time.sleep(0.2)
    assert not running(last)
    assert multiprocessing.active_children() == []
    with pytest.raises(GirsanovError):
        pending.result()


def test_an_object_of_a_users_file_travels_and_loads_where_it_is_called(user_file):
    from girsanov.rewards.function import load_object

    scale = load_object(f"{user_file}:Scale")(3.0)
    with PooledReward(scale, workers=Processes(1), timeout=30) as pool:
        pool.prepare()
        assert len(multiprocessing.active_children()) == 1 and scale.loaded_in == 0
        assert pool(images(3), requests(3)).tolist() == [0.0, 12.0, 24.0]


def test_workers_end_when_the_run_is_killed(user_file):
    script = f"""
        import torch
        from girsanov.rewards.pool import PooledReward
        from girsanov.rewards.workers import Processes
        from girsanov.types import Cond, Prompts

        def ask(first):
            n = torch.arange(1)
            return Prompts(Cond({{}}, n), n, n, (first,))

        if __name__ == "__main__":
            pool = PooledReward("{user_file}:score", workers=Processes(1))
            print(int(pool(torch.zeros(1, 4), ask(9))[0]), flush=True)
            pool(torch.zeros(1, 4), ask(7))  # hangs, and the run is killed meanwhile
    """
    path = user_file.with_name("run.py")
    path.write_text(textwrap.dedent(script))
    run = subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        worker = int(run.stdout.readline())
        assert running(worker)
        run.send_signal(signal.SIGKILL)
        run.wait(10)
        for _ in range(100):
            if not running(worker):
                break
            time.sleep(0.1)
        assert not running(worker)
    finally:
        run.kill()
        run.wait(10)


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
