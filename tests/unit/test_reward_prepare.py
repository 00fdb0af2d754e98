"""Rewards are cheap to construct and load on ``prepare``: reading a configuration opens no weights, asks no server."""

import copy
import pickle
import socket
import threading

import pytest
import torch

from girsanov.config import Part, load_config, make
from girsanov.errors import GirsanovError
from girsanov.recipes.base import reward_of
from girsanov.recipes.pipelines import PipelineRunConfig
from girsanov.rewards import REWARDS, PooledReward, RemoteReward, Reward, VLMReward, WeightedSum
from girsanov.rewards.aesthetic import Head
from girsanov.rewards.once import Once
from girsanov.rewards.server import RewardServer
from girsanov.rewards.workers import Threads
from girsanov.types import Cond, Prompts
from tests.completions import completions, said

GONE = "/no/such/folder"
NOBODY = "http://127.0.0.1:1"
MISSING = {
    "clip-score": ({"model": GONE}, f"{GONE} cannot be loaded as a CLIPModel"),
    "pick-score": ({"model": GONE, "processor": None}, f"{GONE} cannot be loaded as a CLIPModel"),
    "hpsv2": ({"weights": f"{GONE}/w.pt", "base": GONE}, f"{GONE} cannot be loaded as a CLIPConfig"),
    "hpsv3": ({"weights": f"{GONE}/w.pt", "base": GONE, "question": GONE}, "the question of hpsv3 cannot be read"),
    "image-reward": ({"weights": f"{GONE}/w.pt", "tokenizer": GONE}, f"there is no file {GONE}/w.pt"),
    "laion-aesthetic": ({"head": f"{GONE}/h.pth", "model": GONE}, f"there is no file {GONE}/h.pth"),
    "aesthetic": ({"features": "torch:relu", "head": f"{GONE}/h.st"}, f"there is no file {GONE}/h.st"),
    "trained": ({"path": GONE}, f"there is no saved model in {GONE}"),
    "vlm-judge": ({"url": NOBODY, "model": "m", "retries": 0}, f"the judge {NOBODY} cannot be reached"),
    "remote": ({"url": NOBODY, "retries": 0}, f"the reward server {NOBODY} cannot be reached"),
}
"""Every reward that loads or connects: options that name what is not there, and how ``prepare`` says so."""


@pytest.fixture
def closed(monkeypatch):
    """Whatever loads weights or opens a connection fails the test."""

    def refuse(*args: object, **options: object) -> None:
        pytest.fail(f"opened {args}")

    for place in ("pretrained", "read_tensors", "weights_file", "transformers"):
        for module in ("clip", "hps", "hpsv3", "image_reward", "laion", "pretrained"):
            monkeypatch.setattr(f"girsanov.rewards.{module}.{place}", refuse, raising=False)
    monkeypatch.setattr("girsanov.rewards.aesthetic.load_head", refuse)
    monkeypatch.setattr("girsanov.reward_models.model.read_settings", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def ask(n):
    return Prompts(Cond({}, torch.arange(n)), torch.arange(n), torch.arange(n), ("a fox",) * n)


def test_nothing_is_opened_to_read_a_configuration(closed) -> None:
    """A run with every such reward, inside a sum, and one in a pool of processes: nothing starts, either."""
    parts = [{"kind": kind, **options} for kind, (options, _) in MISSING.items()]
    pooled = {"kind": "pooled", "reward": "clip-score", "workers": {"kind": "processes", "count": 2}}
    config = load_config(
        PipelineRunConfig,
        {"reward": {"kind": "sum", "parts": [*parts, pooled]}, "judge": "hpsv2", "model": GONE},
    )
    assert [p["kind"] for p in config.reward.options["parts"]] == [*MISSING, "pooled"]
    assert isinstance(make(Reward, config.reward), WeightedSum)


@pytest.mark.parametrize("kind", MISSING)
def test_what_is_missing_is_said_when_it_is_prepared(kind) -> None:
    options, sentence = MISSING[kind]
    assert isinstance(make(Reward, Part(kind, options)), REWARDS[kind])
    pooled = {"kind": "pooled", "reward": {"kind": kind, **options}}
    both = load_config(PipelineRunConfig, {"reward": {"kind": "sum", "parts": ["bold", pooled]}})
    for part in (Part(kind, options), both.reward):
        with pytest.raises(GirsanovError) as error:
            reward_of(part, torch.device("cpu"))
        assert str(error.value).startswith(sentence) and "\n" not in str(error.value)


def test_a_pool_that_was_refused_can_be_prepared_again(tmp_path) -> None:
    head = tmp_path / "head.safetensors"
    part = Part("aesthetic", {"features": "torch:squeeze", "head": str(head)})
    with PooledReward(make(Reward, part), workers=Threads(3)) as pool:
        with pytest.raises(GirsanovError, match="there is no file"):
            pool.prepare()
        Head((4,)).save(head)
        pool.prepare()
        pool.prepare()
        assert bool(pool(torch.rand(2, 4), ask(2)).isfinite().all())
    with pytest.raises(GirsanovError, match="is closed"):
        pool.prepare()


class Odd(Reward):
    """Raises something of its own while it loads."""

    name = "odd"

    def prepare(self, device="cpu"):
        raise KeyError("tower")

    def __call__(self, x, prompts):
        return x.sum(1)


def test_an_error_of_the_user_s_own_loading_is_one_sentence() -> None:
    with PooledReward(Odd()) as pool, pytest.raises(GirsanovError) as error:
        pool.prepare()
    assert str(error.value).startswith("the reward 'odd' raised KeyError: 'tower' (test_reward_prepare.py, line ")


def test_servers_are_asked_whether_they_are_there(monkeypatch) -> None:
    monkeypatch.delenv("GIRSANOV_JUDGE_TOKEN", raising=False)
    with RewardServer(make(Reward, Part("bold")), token="secret") as server:
        RemoteReward(server.url, token="secret").prepare()
        with pytest.raises(GirsanovError, match="refused the token: set GIRSANOV_REWARD_TOKEN"):
            RemoteReward(server.url, token="wrong", retries=0).prepare()
    with completions() as start:  # speaks no GET: it is there all the same
        server = start(lambda body, count: said("[[5]]"))
        VLMReward(server.url, "m").prepare()
        assert server.requests == []


# ---- once


def test_what_is_made_once_is_made_once_though_many_ask() -> None:
    made, gate = [], threading.Event()

    def slow() -> object:
        gate.wait(5)
        made.append(object())
        return made[-1]

    once, found = Once(slow), []
    threads = [threading.Thread(target=lambda: found.append(once())) for _ in range(4)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join(5)
    assert len(made) == 1 and found == made * 4


def test_what_was_made_does_not_travel_and_a_failure_is_not_kept() -> None:
    once = Once(torch.ones, 3)
    big = once()
    assert once() is big and len(pickle.dumps(Once(torch.ones, 3))) == len(pickle.dumps(once))
    assert copy.deepcopy(once)() is not big and torch.equal(pickle.loads(pickle.dumps(once))(), big)
    tries: list[int] = []

    def second() -> int:
        tries.append(1)
        return 1 // (len(tries) - 1)

    again = Once(second)
    with pytest.raises(ZeroDivisionError):
        again()
    assert again() == again() == 1 and len(tries) == 2
