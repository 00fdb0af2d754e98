"""Rewards in actors of Ray: the same scores, one sentence for each way to fail, nothing left running.

A cluster on this machine takes seconds to start and is slow; what needs none is not.
"""

import os
import sys
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from girsanov.config import Part, describe, make
from girsanov.errors import GirsanovError
from girsanov.rewards import Bold, PooledReward
from girsanov.rewards.base import Reward
from girsanov.rewards.pool import Drop
from girsanov.rewards.ray_workers import RayActors, connect
from girsanov.rewards.workers import Workers
from girsanov.types import Cond, Prompts

ASK = 6


def requests() -> Prompts:
    rows = torch.arange(ASK)
    return Prompts(Cond({"label": rows}, rows), rows, rows, tuple(range(ASK)))


def images() -> Tensor:
    return torch.rand(ASK, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def sums(x: Tensor, meta: list) -> Tensor:
    return x.flatten(1).sum(1) + torch.tensor(meta)


def raises(x: Tensor, meta: list) -> Tensor:
    raise ValueError("no such font")


def dies(x: Tensor, meta: list) -> Tensor:
    os._exit(3)


def hangs(x: Tensor, meta: list) -> Tensor:
    time.sleep(60)
    return x.flatten(1).sum(1)


def test_without_ray_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for use in (lambda p: p.prepare(), lambda p: p(images(), requests())):
        with PooledReward(Bold(), workers=RayActors()) as pooled, pytest.raises(GirsanovError) as error:
            use(pooled)
        assert str(error.value) == "actors need the package ray: pip install 'girsanov[ray]', or use processes"


@pytest.mark.parametrize("wrong", [{"cpus": -1.0}, {"gpus": -0.5}, {"start_seconds": 0.0}])
def test_wrong_settings(wrong: dict) -> None:
    with pytest.raises(GirsanovError, match="cpus and gpus of 0 or more, and start_seconds above 0"):
        RayActors(**wrong)


def test_actors_are_a_kind_of_workers() -> None:
    data = {"kind": "pooled", "reward": {"kind": "bold"}, "workers": {"kind": "ray", "count": 3, "gpus": 0.5}}
    pooled = make(Reward, Part("pooled", {k: v for k, v in data.items() if k != "kind"}))
    assert isinstance(pooled, PooledReward) and pooled.workers == RayActors(count=3, gpus=0.5)
    assert describe(pooled)["workers"]["kind"] == "ray" and issubclass(RayActors, Workers)
    pooled.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """Ray on this machine, with two processors."""
    ray = pytest.importorskip("ray")
    with pytest.raises(GirsanovError, match="no cluster of Ray can be used .*: check the address, or leave it out"):
        connect("auto")
    ray.init(num_cpus=2, num_gpus=0, log_to_driver=False, include_dashboard=False)
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_actors_give_the_scores_of_the_reward(cluster: object) -> None:
    workers = RayActors(count=2, cpus=0.5)
    with PooledReward(Bold(), workers=workers, chunk=2) as pooled:
        pooled.prepare()
        assert torch.equal(pooled(images(), requests()), Bold()(images(), requests()))
    with PooledReward(sums, workers=workers, chunk=2) as pooled:
        expected = sums(images(), list(range(ASK)))
        assert torch.equal(pooled(images(), requests()), expected)
        for worker in pooled._crew.crew:  # their machine is gone
            cluster.kill(worker.actor)
        assert torch.equal(pooled(images(), requests()), expected)


@pytest.mark.slow
def test_a_function_of_a_users_file_travels(cluster: object, tmp_path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def fn(images, prompts):\n    return images.flatten(1).sum(1)\n")
    with PooledReward(f"{path}:fn", workers=RayActors(count=1)) as pooled:
        torch.testing.assert_close(pooled(images(), requests()), images().flatten(1).sum(1))


@pytest.mark.slow
def test_what_goes_wrong_is_one_sentence(cluster: object) -> None:
    workers = RayActors(count=1, start_seconds=60)
    said = {
        raises: "the reward 'raises' raised ValueError: no such font (test_reward_ray.py, line "
        f"{raises.__code__.co_firstlineno + 1}); mend it, or let failures pass with on_failure=drop",
        dies: "the reward 'dies' raised SystemExit: its actor died twice (",
        hangs: "the reward 'hangs' gave no answer within 0.5 s: raise its timeout, or let failures pass with "
        "on_failure=drop",
    }
    for reward, sentence in said.items():
        timeout = 0.5 if reward is hangs else 60.0
        with PooledReward(reward, workers=workers, timeout=timeout) as pooled:
            with pytest.raises(GirsanovError) as error:
                pooled(images(), requests())
            assert str(error.value).startswith(sentence)
    with PooledReward(dies, workers=workers, on_failure=Drop()) as pooled:
        assert pooled(images(), requests()).isnan().all()


@pytest.mark.slow
def test_a_place_that_the_cluster_does_not_have(cluster: object) -> None:
    workers = RayActors(count=1, gpus=1, start_seconds=1)
    with PooledReward(Bold(), workers=workers) as pooled, pytest.raises(GirsanovError) as error:
        pooled.prepare()
    assert str(error.value) == (
        "Ray found no place for an actor with 1 processors and 1 GPUs within 1 s (the cluster has 2 processors and 0 "
        "GPUs): ask for less, or fewer actors"
    )


@pytest.mark.slow
def test_a_pool_that_closes_leaves_no_actor(cluster: object) -> None:
    pooled = PooledReward(hangs, workers=RayActors(count=2, cpus=0.5), chunk=3)
    pooled.prepare()
    pending = pooled.submit(images(), requests())
    pooled.close()
    with pytest.raises(GirsanovError, match="was closed"):
        pending.result()
    for _ in range(100):
        if cluster.available_resources().get("CPU") == 2:
            break
        time.sleep(0.1)
    assert cluster.available_resources()["CPU"] == 2  # nothing holds a processor any more
