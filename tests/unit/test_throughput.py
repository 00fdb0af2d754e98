"""Where an iteration's time goes, what its passes cost, and what reports say of it."""

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from girsanov.callbacks.throughput import Throughput, speeds
from girsanov.clock import Clock, current, phase
from girsanov.devices import peak_memory, peak_of
from girsanov.errors import GirsanovError
from girsanov.folder import RunFolder
from girsanov.grids import Grid
from girsanov.methods import METHODS
from girsanov.passes import Passes
from girsanov.policy import Policy
from girsanov.problems import LinearReward
from girsanov.report.compare import write_comparison
from girsanov.report.data import RunData
from girsanov.report.run import write_report
from girsanov.rewards.function import FunctionReward
from girsanov.rewards.pool import PooledReward
from girsanov.rewards.workers import Threads
from girsanov.train import iterate, train
from tests.tiny import tiny_run

M, N, K = 6, 5, 3  # batch, inputs, outputs
F = 2 * M * N * K


class Doubled(nn.Linear):
    """A linear layer, called as networks of policies are."""

    def forward(self, x: Tensor, t: Tensor | None = None, cond: None = None) -> Tensor:
        return super().forward(x)


class Outer(nn.Module):
    """Calls a compiled network, as a pipeline's denoiser does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def counted(use, net: nn.Module) -> float:
    """FLOPs of what ``use`` does with the network, all in the phase "loss"."""
    passes = Passes(net)
    with Clock.running() as clock:
        use(net)
        clock.lap("loss")
    passes.close()
    return clock.result().get("flops/loss", 0.0)


def test_a_linear_layer_takes_2mnk_and_its_gradients_as_much_each() -> None:
    """2 m n k by hand: forward, the gradient in the weights, the gradient in the activations."""
    x = torch.randn(M, N)
    net = Doubled(N, K, bias=False)
    assert counted(lambda f: f(x), net) == F
    assert counted(lambda f: f(x).sum().backward(), net) == 3 * F
    assert counted(lambda f: [f(x).sum().backward() for _ in range(4)], net) == 12 * F
    frozen = Doubled(N, K, bias=False).requires_grad_(False)
    assert counted(lambda f: f(x.requires_grad_(True)).sum().backward(), frozen) == 2 * F
    with torch.no_grad():
        assert counted(lambda f: [f(x), f(x[:3])], net) == 1.5 * F  # another shape is counted anew


def test_views_recomputed_passes_and_shares_of_the_weights_count_as_they_cost() -> None:
    from girsanov.models import Model
    from girsanov.processes import RectifiedFlow

    net = Doubled(N, N, bias=False)
    policy = Policy(Model(net, RectifiedFlow(), "velocity", (N,)))
    x, t = torch.randn(M, N, requires_grad=True), torch.tensor(0.5)
    once = 2 * M * N * N
    # the weights of the reference require no gradient: forward, and the gradient in x
    assert counted(lambda _: policy.view("reference")(x, t).sum().backward(), net) == 2 * once
    again = counted(lambda f: checkpoint(f, x, use_reentrant=False).sum().backward(), net)
    assert again == 3 * once  # the pass that the backward pass makes again is none that the model needs
    half = nn.Sequential(nn.Linear(N, N, bias=False), nn.Linear(N, N, bias=False).requires_grad_(False))
    assert counted(lambda f: f(x).sum().backward(), half) == (2 + 2 + 2 * 0.5) * once


def test_attention_and_convolutions_are_counted() -> None:
    net = nn.Conv2d(2, 4, 3, padding=1, bias=False)
    assert counted(lambda f: f(torch.randn(5, 2, 8, 8)), net) == 2 * 5 * 8 * 8 * 4 * 2 * 9


def test_a_compiled_network_is_counted_and_stays_compiled() -> None:
    """The counted pass runs as written; the next one is compiled, once."""
    torch.compiler.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> object:
        graphs.append(graph)
        return graph.forward

    net = Doubled(N, K, bias=False)
    net.compile(backend=backend)
    outer = Outer(net)
    x = torch.randn(M, N)
    assert counted(lambda f: [f(x).sum().backward() for _ in range(3)], outer) == 9 * F
    assert len(graphs) == 1
    torch.compiler.reset()


def test_an_operation_that_fails_leaves_the_counting_in_order() -> None:
    net = Doubled(N, K, bias=False)
    passes = Passes(net)
    with Clock.running() as clock:
        with pytest.raises(RuntimeError):
            net(torch.randn(M, N + 1))
        net(torch.randn(M, N))
        clock.lap("loss")
    passes.close()
    assert clock.result()["flops/loss"] == F


def test_an_iteration_that_breaks_leaves_no_clock() -> None:
    run = tiny_run(METHODS["ode-am"](reward=FunctionReward(lambda x, p: 1 / 0, "broken", differentiable=True)))
    with pytest.raises((GirsanovError, ZeroDivisionError)):
        iterate(run)
    assert current() is None


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clock's hand: it moves by what is waited for, and by a second whenever it is looked at."""
    found = SimpleNamespace(now=0.0)

    def look() -> float:
        found.now += 1.0
        return found.now

    monkeypatch.setattr("girsanov.clock.time", SimpleNamespace(perf_counter=look))
    return found


def test_phases_lie_within_each_other_and_add_up(hand: SimpleNamespace) -> None:
    """A second at each beginning and end of a phase, beside those that pass within."""
    with Clock.running() as clock:
        start = clock.last
        with phase("rollout"):  # its beginning belongs to the lap
            hand.now += 20
            with phase("reward"):
                hand.now += 30
        hand.now += 10
        clock.lap("collect")
        with phase("rollout"):  # after the first lap it belongs to the lap
            hand.now += 10
        clock.lap("loss")
    assert clock.result() == {"time/rollout": 22, "time/reward": 31, "time/collect": 12, "time/loss": 11}
    assert clock.last - start == 22 + 31 + 12 + 11
    with phase("rollout"):
        assert current() is None  # no iteration: nothing to book


def test_other_threads_book_nothing() -> None:
    seen = []
    with Clock.running():
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
    assert seen == [None]


@pytest.mark.parametrize("name", ["ode-am", "clipped-pg", "draft", "branch-grpo"])
def test_the_phases_of_an_iteration_add_up_to_it(name: str, hand: SimpleNamespace) -> None:
    """Every second between the clock's first look and its last one, and no second twice."""
    run = tiny_run(METHODS[name](reward=LinearReward([1.0, 0.5]), grid=Grid.uniform(8)))
    iterate(run)
    start = hand.now + 1
    found = iterate(run)
    phases = {key: value for key, value in found.items() if key.startswith("time/")}
    assert {"time/rollout", "time/collect", "time/loss", "time/update"} <= phases.keys()
    assert ("time/reward" in phases) == (name != "draft")  # DRaFT's reward is part of its loss
    assert sum(phases.values()) == hand.now - start


def test_waiting_for_a_reward_is_apart_from_its_work() -> None:
    """Two calls of 0.2 s in two threads: 0.4 s of work, and they are waited for together."""

    def slow(images: Tensor, labels: list) -> Tensor:
        time.sleep(0.2)
        return images.flatten(1).mean(1)

    reward = FunctionReward(slow, "slow", differentiable=False)
    with PooledReward(reward, workers=Threads(2), chunk=4) as pooled:
        found = iterate(tiny_run(METHODS["clipped-pg"](reward=pooled, grid=Grid.uniform(2))))
    assert found["samples"] == 8
    assert found["speed/reward_work"] >= 0.4 and 0 < found["time/reward"] < found["speed/reward_work"]
    found = iterate(tiny_run(METHODS["clipped-pg"](reward=reward, grid=Grid.uniform(2))))
    assert found["speed/reward_work"] == pytest.approx(found["time/reward"]) and found["time/reward"] > 0.2


def test_the_callback_says_how_fast_a_run_is() -> None:
    """With a peak of 1 FLOP/s the MFU times the seconds is the FLOPs: N rollouts, K references, K trained passes."""
    steps, k, rows = 8, 3, []

    class Keep:
        def start(self, run): ...
        def end(self, run): ...
        def iteration(self, run, metrics):
            rows.append(dict(metrics))

    run = tiny_run(METHODS["ode-am"](reward=LinearReward([1.0, 0.5]), grid=Grid.uniform(steps), last=k), iterations=2)
    sizes = [p.numel() for n, p in run.policy.net.named_parameters() if p.ndim == 2 and "label" not in n]
    train(run, [Throughput(peak=1.0), Keep()])
    found = rows[-1]
    total = sum(v for key, v in found.items() if key.startswith("time/"))
    assert found["speed/samples"] == pytest.approx(found["samples"] / total)
    assert not any(key.startswith("flops/") for key in found)
    flops = found["speed/mfu"] * total
    forward = flops / (steps + (2 * k - 1) + 3 * k)  # the reference: k passes, k - 1 of them with their VJP
    assert found["speed/mfu_loss"] * found["time/loss"] == pytest.approx(3 * k * forward)
    assert forward == pytest.approx(2 * found["samples"] * sum(sizes), rel=0.05) and sizes
    assert 10 < found["speed/peak_mb"] < 1e5
    assert not run.policy.net._forward_hooks


def test_a_share_of_an_unknown_peak_is_left_out() -> None:
    metrics = {"time/rollout": 1.0, "time/loss": 3.0, "samples": 8.0}
    assert speeds(metrics, {"flops/loss": 6.0, "flops/rollout": 2.0}, None) == {"speed/samples": 2.0}
    assert speeds(metrics, {"flops/loss": 6.0, "flops/rollout": 2.0}, 4.0) == {
        "speed/samples": 2.0,
        "speed/mfu": 0.5,
        "speed/mfu_loss": 0.5,
    }
    # a rollout whose passes were not seen
    assert speeds(metrics, {"flops/loss": 6.0}, 4.0) == {"speed/samples": 2.0, "speed/mfu_loss": 0.5}
    run = tiny_run(iterations=1)
    train(run, [Throughput()])
    assert run.policy.device.type != "cpu" or not run.policy.net._forward_hooks


@pytest.mark.parametrize(
    ("name", "dtype", "tf32", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, False, 989e12),
        ("NVIDIA H100 PCIe", torch.bfloat16, False, 756e12),
        ("NVIDIA A100-SXM4-80GB", torch.float32, False, 19.5e12),
        ("NVIDIA A100-SXM4-80GB", torch.float32, True, 156e12),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", torch.bfloat16, False, None),
        ("Tesla V100-SXM2-16GB", torch.bfloat16, False, None),
        ("Tesla V100-SXM2-16GB", torch.float16, False, 125e12),
        ("NVIDIA L40S", torch.float16, False, 362e12),
        ("NVIDIA L40", torch.float16, False, None),
        ("NVIDIA A100", torch.float64, False, None),
        ("Somebody's card", torch.bfloat16, False, None),
    ],
)
def test_peaks(name: str, dtype: torch.dtype, tf32: bool, peak: float | None) -> None:
    assert peak_of(name, dtype, tf32) == peak


def test_memory_in_use_shows_in_the_peak() -> None:
    before = peak_memory(torch.device("cpu"))
    assert before is not None
    block = torch.ones(before // 4 + 2**23)  # as much again, and 32 MiB
    after = peak_memory(torch.device("cpu"))
    assert after >= before + 2**24 and len(block)


def folder(path: Path, peak: float, **more: float) -> RunFolder:
    run = RunFolder.create(path, "mixture", "girsanov run mixture", "a: 1\n")
    about = {"description": "d", "facts": {}, "method": "am", "iterations": 3, "metrics": []}
    (path / "about.json").write_text(json.dumps(about))
    for i, speed in ((1, 1.0), (2, 8.0), (3, 12.0)):
        run.log(i, {"loss": 1.0, "time/loss": 1.0, "speed/samples": speed, "speed/peak_mb": peak + i, **more})
    return run


def test_reports_show_the_speed(tmp_path: Path) -> None:
    run = folder(tmp_path / "a", 100.0, **{"speed/mfu": 0.437})
    assert RunData.read(run).speeds() == {"samples": 10.0, "mfu": 0.437, "peak_mb": 103.0}  # the first one warms up
    page = write_report(run).read_text()
    assert "samples a second" in page and "43.7 %" in page and "103 MiB" in page and "reward at work" not in page
    folder(tmp_path / "b", 200.0)
    page, numbers = tmp_path / "c.html", tmp_path / "c.json"
    text = write_comparison([tmp_path / "a", tmp_path / "b"], page, numbers)
    assert [line.split()[-6:] for line in text.splitlines()[1:]] == [
        ["0", "10", "43.7", "%", "103", "MiB"],
        ["3", "0", "10", "–", "203", "MiB"],
    ]
    assert "43.7 %" in page.read_text()
    assert json.loads(numbers.read_text())["runs"][1]["speeds"] == {"samples": 10.0, "peak_mb": 203.0}
