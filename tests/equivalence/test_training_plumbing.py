"""The same run through different plumbing: micro-batches, minibatches, precision, averages, skipped steps.

All in float64 unless said otherwise, seed 0, 8 samples an iteration; tolerances are relative.
"""

import dataclasses
import math
from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods import METHODS, Method
from girsanov.methods.adjoint.ode import ODEAdjointMatching
from girsanov.problems import LinearReward
from girsanov.train import Run, TrainConfig, iterate, train, update
from tests.tiny import restless_run, tiny_prompts, tiny_run

REWARD = LinearReward([1.0, 0.5])
SHORT = {"grid": Grid.uniform(4)}
PROMPTED = {name: cls for name, cls in METHODS.items() if cls.data == "prompts"}


OF_A_MICRO_BATCH = {"ratio_min", "ratio_max", "first/ratio_min", "first/ratio_max", "reward_std", "old_gap"}
"""Metrics that are no means over samples: ends, spreads and root mean squares of what one pass sees."""


def make(name: str) -> Method:
    return PROMPTED[name](reward=REWARD, **SHORT)


def curve(run: Run) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []

    class Keep:
        def start(self, run: Run) -> None: ...

        def iteration(self, run: Run, metrics: dict[str, float]) -> None:
            rows.append({k: v for k, v in metrics.items() if not k.startswith(("time/", "speed/"))})

        def end(self, run: Run) -> None: ...

    train(run, [Keep()])
    return rows


def close(a: list[dict[str, float]], b: list[dict[str, float]], tolerance: float) -> None:
    assert len(a) == len(b) > 0
    residuals = []
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in x.keys() - OF_A_MICRO_BATCH:
            scale = max(abs(x[key]), 1e-3)
            residuals.append((y[key] - x[key]) / scale)
            assert abs(residuals[-1]) <= tolerance, f"{key}: {x[key]} and {y[key]}"
    assert abs(sum(residuals)) / len(residuals) <= tolerance / 2  # no drift to one side


@pytest.mark.parametrize("name", PROMPTED)
def test_micro_batches_change_memory_not_the_curve(name: str) -> None:
    whole = curve(tiny_run(make(name), iterations=3))
    parts = curve(tiny_run(make(name), iterations=3, micro_batch=1))
    close(whole, parts, 1e-9)


@pytest.mark.parametrize("name", PROMPTED)
def test_the_gradient_of_micro_batches_is_that_of_the_batch(name: str) -> None:
    gradients = []
    for micro in (None, 3):
        run = tiny_run(make(name), micro_batch=micro, max_grad_norm=None)
        grads: list[torch.Tensor] = []
        for p in run.policy.parameters():
            p.register_hook(lambda g, grads=grads: None)
        iterate_without_step(run, grads)
        gradients.append(torch.cat([g.flatten() for g in grads]))
    assert gradients[0].norm() > 0 or name == "spo"  # which waits for its preference model
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


def iterate_without_step(run: Run, grads: list[torch.Tensor]) -> None:
    """One iteration whose optimiser keeps the gradients and moves nothing."""

    class Keep:
        def step(self) -> None:
            grads.extend(p.grad.clone() for p in run.policy.parameters() if p.grad is not None)

        def zero_grad(self, set_to_none: bool = True) -> None:
            for p in run.policy.parameters():
                p.grad = None

    run.optimizers["policy"] = Keep()
    iterate(run)


def test_one_thread_twice_is_the_same_to_the_bit() -> None:
    assert curve(tiny_run(iterations=4)) == curve(tiny_run(iterations=4))


def test_minibatches_visit_every_sample_once_an_epoch() -> None:
    run = restless_run(iterations=1, minibatches=3, epochs=2)
    seen = []
    losses = run.method.losses

    class Watched:
        def __getattr__(self, name: str) -> object:
            return getattr(run_method, name)

        def losses(self, policy: object, batch: object, state: object) -> object:
            seen.append(batch.x[:, 0].tolist())
            return losses(policy, batch, state)

    run_method, run.method = run.method, Watched()
    iterate(run)
    assert [len(s) for s in seen] == [3, 3, 2] * 2
    first, second = sorted(x for s in seen[:3] for x in s), sorted(x for s in seen[3:] for x in s)
    assert first == second and len(set(first)) == 8


def test_more_minibatches_than_samples_is_refused() -> None:
    with pytest.raises(GirsanovError) as error:
        iterate(tiny_run(minibatches=9))
    assert str(error.value) == "minibatches = 9 exceeds the 8 samples of a process: lower it or collect more"


def test_clipping_bounds_the_step_and_reports_the_norm_before_it() -> None:
    run = tiny_run(max_grad_norm=1e-3)
    for p in run.policy.parameters():
        p.grad = torch.ones_like(p)
    norm = math.sqrt(sum(p.numel() for p in run.policy.parameters()))
    clipped = []
    run.optimizers["policy"].step = lambda: clipped.append(
        nn.utils.get_total_norm([p.grad for p in run.policy.parameters()])
    )
    assert float(update(run)["grad_norm"]) == pytest.approx(norm)
    assert float(clipped[0]) == pytest.approx(1e-3, rel=1e-3)


def test_averaged_weights_follow_the_formula() -> None:
    run = tiny_run(iterations=5, ema=0.8)
    average = {n: w.clone() for n, w in run.policy.state().items()}
    for _ in range(5):
        iterate(run)
        run.done += 1
        average = {n: 0.8 * a + 0.2 * run.policy.state()[n] for n, a in average.items()}
    for name, weights in run.policy.state("ema").items():
        torch.testing.assert_close(weights, average[name], rtol=1e-12, atol=1e-14)
    x, t = torch.zeros(1, 2, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    assert torch.equal(run.model()(x, t), run.policy.view("ema")(x, t))
    assert not torch.equal(run.model()(x, t), run.policy.view("current")(x, t))


RATES = {
    "constant": [0.5, 1.0, 1.0, 1.0, 1.0, 1.0],
    "linear": [0.5, 1.0, 1.0, 0.75, 0.5, 0.25],
    "cosine": [0.5, 1.0, 1.0] + [0.5 * (1 + math.cos(math.pi * k / 4)) for k in (1, 2, 3)],
}


@pytest.mark.parametrize(("schedule", "rates"), RATES.items(), ids=RATES)
def test_learning_rates_follow_their_schedule(schedule: str, rates: list[float]) -> None:
    run, used = tiny_run(iterations=6, warmup=2, schedule=schedule, lr=1.0), []
    for _ in range(6):
        used.append(run.optimizers["policy"].param_groups[0]["lr"])
        update_with_zeros(run)
    assert used == pytest.approx(rates, abs=1e-6)


def update_with_zeros(run: Run) -> None:
    for p in run.policy.parameters():
        p.grad = torch.zeros_like(p)
    update(run)


def test_lower_precision_of_the_network_leaves_samples_and_losses_close() -> None:
    """bfloat16 has 8 bits: curves agree to a few percent, parameters and samples stay float32."""
    runs = {}
    for dtype in (None, torch.bfloat16):
        run = tiny_run(iterations=3, dtype=torch.float32)
        object.__setattr__(run.policy.model, "autocast", dtype)
        runs[dtype] = curve(run)
        assert all(p.dtype == torch.float32 for p in run.policy.parameters())
    full, half = runs[None], runs[torch.bfloat16]
    assert full != half
    for a, b in zip(full, half, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.05)


class HalfPrecision:
    """What the loop needs of Accelerate under float16: a scaled loss, and steps that are skipped on overflow."""

    num_processes, process_index = 1, 0

    def __init__(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10_000)

    def prepare(self, optimizer: torch.optim.Optimizer) -> object:
        return AcceleratedOptimizer(optimizer, scaler=self.scaler)

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def unscale_gradients(self, optimizer: object) -> None:
        self.scaler.unscale_(optimizer.optimizer)


@pytest.fixture
def accelerate_state() -> Iterator[None]:
    """Accelerate keeps its state in the process; put it away again."""
    Accelerator(cpu=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.usefixtures("accelerate_state")
def test_a_scaled_loss_gives_the_same_curve() -> None:
    scaled = curve(tiny_run(accelerator=HalfPrecision(), iterations=4))
    assert all(row.pop("skipped") == 0.0 for row in scaled)
    close(curve(tiny_run(iterations=4)), scaled, 1e-9)


@pytest.mark.usefixtures("accelerate_state")
def test_an_overflow_skips_the_step_with_its_rate_and_its_average() -> None:
    run = tiny_run(accelerator=HalfPrecision(), iterations=6)
    before = {n: w.clone() for n, w in run.policy.state().items()}
    average = {n: w.clone() for n, w in run.policy.state("ema").items()}
    rate = run.schedulers["policy"].get_last_lr()
    for p in run.policy.parameters():
        run.accelerator.scaler.scale(p.sum())  # starts the scaler
        p.grad = torch.full_like(p, float("inf"))
    assert update(run) == {"skipped": 1.0}
    assert all(torch.equal(w, before[n]) for n, w in run.policy.state().items())
    assert all(torch.equal(w, average[n]) for n, w in run.policy.state("ema").items())
    assert run.schedulers["policy"].get_last_lr() == rate
    assert run.accelerator.scaler.get_scale() == 2.0**9


def test_without_scaling_an_overflow_is_an_error() -> None:
    run = tiny_run()
    for p in run.policy.parameters():
        p.grad = torch.full_like(p, float("nan"))
    with pytest.raises(GirsanovError) as error:
        update(run)
    assert str(error.value) == (
        "the gradient is not finite at iteration 0: lower the learning rate, or look at the reward and the metrics "
        "just before; the last checkpoint is intact"
    )


def test_a_reward_that_is_not_finite_is_an_error_before_anything_moves() -> None:
    run = restless_run()
    collect, before = run.method.collect, {n: w.clone() for n, w in run.policy.state().items()}

    def spoiled(*arguments: object) -> object:
        batch = collect(*arguments)
        return dataclasses.replace(batch, reward=torch.where(torch.arange(8) < 3, torch.inf, batch.reward))

    object.__setattr__(run.method, "collect", spoiled)
    with pytest.raises(GirsanovError) as error:
        iterate(run)
    assert str(error.value) == (
        "the reward of 3 of 8 samples is not finite at iteration 0: clamp what the reward divides by or takes the log "
        "of; the last checkpoint is intact"
    )
    assert all(torch.equal(w, before[n]) for n, w in run.policy.state().items())


def test_stopping_ends_after_the_iteration() -> None:
    class Stops:
        ended = 0

        def start(self, run: Run) -> None: ...

        def iteration(self, run: Run, metrics: dict[str, float]) -> None:
            if run.done == 2:
                run.stop("enough")

        def end(self, run: Run) -> None:
            Stops.ended += 1

    run = train(tiny_run(iterations=5), [Stops()])
    assert run.done == 2 and run.stopped == "enough" and not run.failed and Stops.ended == 1


def test_adapters_train_through_the_same_loop() -> None:
    pytest.importorskip("peft")
    from girsanov.adapters.lora import add_lora
    from girsanov.policy import Policy

    run = tiny_run()
    model, kept = run.policy.model, {n: p.detach().clone() for n, p in run.policy.net.named_parameters()}
    x, t = torch.randn(3, 2, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    before = model(x, t)
    add_lora(model.net, rank=2)
    policy = Policy(model)
    assert torch.equal(policy.view("current")(x, t), before) and torch.equal(policy.view("reference")(x, t), before)
    method = ODEAdjointMatching(reward=REWARD, grid=Grid.uniform(4))
    tuned = Run(policy, method, TrainConfig(iterations=4, lr=1e-2, ema=0.5), tiny_prompts())
    train(tuned)
    assert torch.equal(policy.view("reference")(x, t), before)
    assert not torch.allclose(tuned.model()(x, t), before)
    assert torch.equal(tuned.model(0.0)(x, t), before)
    frozen = {n.replace(".base_layer", ""): p for n, p in policy.net.named_parameters() if "lora_" not in n}
    assert frozen.keys() == kept.keys() and all(torch.equal(frozen[n], kept[n]) for n in kept)


def test_adapters_without_a_layer_to_go_to_are_refused() -> None:
    pytest.importorskip("peft")
    from girsanov.adapters.lora import add_lora

    net = nn.Sequential(nn.Linear(2, 2), nn.SiLU())
    with pytest.raises(GirsanovError) as error:
        add_lora(net, targets=["to_q"])
    assert str(error.value) == "no linear layer is called to_q: there are 0"


def test_gradients_of_an_earlier_training_are_no_part_of_a_run() -> None:
    """A network that has just been pretrained holds its last gradient."""
    policy = tiny_run().policy
    for p in policy.parameters():
        p.grad = torch.ones_like(p)
    run = tiny_run()
    again = Run(policy, run.method, run.config, run.prompts)
    assert iterate(again)["grad_norm"] == iterate(run)["grad_norm"]
