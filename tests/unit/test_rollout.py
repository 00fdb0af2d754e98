"""The time loop: what it keeps, where gradients flow, trees, replay, and its sentences."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.models import Model
from girsanov.noise import Noise
from girsanov.processes import RectifiedFlow
from girsanov.rollout import replay, resimulate, rollout
from girsanov.samplers import GDDIM, DPMSolverPP2M, Euler, EulerMaruyama, Heun, Mixed, Sampler
from girsanov.types import Cond, Step, Trajectory

B, D, GRID = 4, 3, Grid.uniform(6)
SAMPLERS = [Euler(), Heun(), DPMSolverPP2M(), GDDIM(1.0), EulerMaruyama(0.5), Mixed(start=1, length=2)]
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)


class Net(torch.nn.Module):
    """A small nonlinear conditional network in float64 that counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(D, D, dtype=torch.float64)
        self.passes = 0

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        self.passes += 1
        shift = 0 if cond is None else cond["shift"]
        return torch.tanh(self.layer(x) + t[:, None] + shift)


def make() -> tuple[Net, Model]:
    net = Net()
    return net, Model(net, RectifiedFlow(), "velocity", (D,))


def noise(seed: int = 0) -> Noise:
    return Noise(seed, 0, torch.arange(B))


def start() -> Tensor:
    return Noise(9, 0, torch.arange(B)).normal((D,), torch.float64)


def conditions() -> Cond:
    return Cond({"shift": torch.tensor([[0.0], [0.5], [-0.5]], dtype=torch.float64)}, torch.tensor([0, 1, 2, 1]))


def run(model: Model, sampler: Sampler, **options: object) -> Trajectory:
    return rollout(model, sampler, GRID, start(), conditions(), noise=noise(), **options)


@each_sampler
def test_it_is_the_plain_loop(sampler: Sampler) -> None:
    """The samples and every transition are those of the six lines below, to the bit."""
    _, model = make()
    path = run(model, sampler)
    x, state, z = start(), None, noise()
    for tr, step in zip(path, GRID, strict=True):
        kernel, state = sampler.kernel(model, x, step, conditions(), state)
        x_s = kernel.mean + kernel.std * z(x) if kernel.stochastic else kernel.mean
        assert torch.equal(tr.x_t, x) and torch.equal(tr.mean, kernel.mean) and tr.step.i == step.i
        assert torch.allclose(tr.x_s, x_s, rtol=0, atol=1e-15)
        x = tr.x_s
    assert torch.equal(path.x0, x) and len(path) == B
    assert [tr.step.i for tr in path.trainable] == [tr.step.i for tr in path if tr.stochastic]


@each_sampler
def test_keep_changes_what_is_kept_alone(sampler: Sampler) -> None:
    _, model = make()
    whole, part, none = (run(model, sampler, keep=k) for k in (None, {1, 4}, ()))
    assert torch.equal(whole.x0, part.x0) and torch.equal(whole.x0, none.x0)
    assert [tr.step.i for tr in part] == [1, 4] and len(none.transitions) == 0
    assert torch.equal(part.transitions[1].x_t, whole.transitions[4].x_t)


@each_sampler
@pytest.mark.parametrize("first", [0, 3, 6])
def test_gradients_begin_where_they_are_told(sampler: Sampler, first: int) -> None:
    """``grad_from=k`` is the gradient of a chain cut (detached) before step k; earlier steps carry no graph."""
    net, model = make()
    path = run(model, sampler, grad_from=first)
    assert [tr.mean.requires_grad for tr in path] == [i >= first for i in range(6)]
    if first == 6:
        assert not path.x0.requires_grad
        return
    got = torch.autograd.grad((path.x0**2).sum(), list(net.parameters()))
    x, state, z = start(), None, noise()
    for step in GRID:
        with torch.set_grad_enabled(step.i >= first):
            kernel, state = sampler.kernel(model, x, step, conditions(), state)
            x = kernel.sample(z(x) if kernel.stochastic else None)
    expected = torch.autograd.grad((x**2).sum(), list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_chain_of_gradients_is_that_of_finite_differences() -> None:
    """The whole chain in float64: central differences of the summed samples in one weight, relative 1e-7."""
    net, model = make()
    (got,) = torch.autograd.grad(run(model, GDDIM(1.0)).x0.sum(), net.layer.bias)
    ends = []
    for h in (1e-5, -1e-5):
        with torch.no_grad():
            net.layer.bias[1] += h
            ends.append(float(run(model, GDDIM(1.0)).x0.sum()))
            net.layer.bias[1] -= h
    assert float(got[1]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-7)


@each_sampler
def test_checkpointing_changes_memory_alone(sampler: Sampler) -> None:
    """The same samples and gradients to the bit; the network runs again in the backward pass where there is one."""
    net, model = make()
    results = []
    for checkpoint in (False, True):
        net.passes = 0
        path = run(model, sampler, checkpoint=checkpoint, grad_from=2)
        forward = net.passes
        grads = torch.autograd.grad(path.x0.square().sum(), list(net.parameters()))
        results.append((path.x0, grads, forward, net.passes))
    (x, g, n, total), (y, h, m, again) = results
    assert torch.equal(x, y) and all(torch.equal(a, b) for a, b in zip(g, h, strict=True))
    assert n == m == total and again == m + m * 4 // 6


def test_unasked_gradients_are_left_to_the_caller() -> None:
    _, model = make()
    assert run(model, Euler()).x0.requires_grad
    with torch.no_grad():
        assert not run(model, Euler()).x0.requires_grad


# ---------------------------------------------------------------- trees


def tree_noise(like: Tensor) -> Tensor:
    """Other numbers for every row and call."""
    return torch.randn(like.shape, dtype=like.dtype, generator=GENERATOR)


GENERATOR = torch.Generator()


def split_at(*steps: int) -> Callable[[Step, Tensor], Tensor]:
    """Doubles the batch after the given steps."""

    def branch(step: Step, x_s: Tensor) -> Tensor:
        rows = torch.arange(len(x_s))
        return rows.repeat_interleave(2) if step.i in steps else rows

    return branch


@pytest.mark.parametrize("sampler", [GDDIM(1.0), Mixed(GDDIM(1.0), DPMSolverPP2M(), start=0, length=4)], ids=str)
def test_two_splits_make_four_leaves(sampler: Sampler) -> None:
    """Splits after steps 1 and 2 make four leaves; states hang on their parents', rows on their conditions."""
    GENERATOR.manual_seed(1)
    net, model = make()
    cond = Cond(conditions().tables, torch.tensor([1, 2]))
    path = rollout(model, sampler, GRID, start()[:2], cond, noise=tree_noise, branch=split_at(1, 2))
    assert [len(tr.x_t) for tr in path] == [2, 2, 4, 8, 8, 8] and len(path) == 8
    assert path.cond.index.tolist() == [1] * 4 + [2] * 4
    for before, tr in zip(path.transitions, path.transitions[1:], strict=False):
        assert torch.equal(tr.x_t, before.x_s[tr.parent])
    parents = [tr.parent.tolist() for tr in path.transitions[1:]]
    assert parents == [[0, 1], [0, 0, 1, 1], [0, 0, 1, 1, 2, 2, 3, 3], list(range(8)), list(range(8))]
    assert path.transitions[0].parent is None
    leaves = path.transitions[3].x_s
    assert len({tuple(row) for row in leaves.tolist()}) == 8, "children of a split must differ"
    for tr, kernel in replay(model, sampler, path):
        assert torch.equal(kernel.mean, tr.mean)
    with pytest.raises(GirsanovError) as error:
        path.take(torch.tensor([0]))
    assert str(error.value) == (
        "samples of a tree cannot be taken apart, they share their past: take whole trees, or a chain"
    )


def test_pruning_keeps_the_chosen_rows() -> None:
    """Candidates are made by repeating rows and dropped by leaving rows out; the survivors' conditions go along."""
    _, model = make()

    def best(step: Step, x_s: Tensor) -> Tensor:
        rows = torch.arange(len(x_s))
        if step.i == 1:
            return rows.repeat_interleave(3)
        return x_s[:, 0].view(B, 3).argmax(1) + 3 * torch.arange(B) if step.i == 2 else rows

    GENERATOR.manual_seed(2)
    path = rollout(model, GDDIM(1.0), GRID, start(), conditions(), noise=tree_noise, branch=best)
    assert [len(tr.x_t) for tr in path] == [4, 4, 12, 4, 4, 4]
    drawn = path.transitions[2].x_s[:, 0].view(B, 3)
    assert torch.equal(path.transitions[3].x_t[:, 0], drawn.max(1).values)
    assert path.cond.index.tolist() == conditions().index.tolist()


# ---------------------------------------------------------------- again: replay, resimulate, take


@each_sampler
def test_replay_gives_the_kernels_again(sampler: Sampler) -> None:
    """The same means to the bit, one network pass a stage of a step, none before it is asked."""
    net, model = make()
    path = run(model, sampler)
    sampled, net.passes = net.passes, 0
    lazily = replay(model, sampler, path)
    assert net.passes == 0
    for tr, kernel in lazily:
        assert torch.equal(kernel.mean, tr.mean) and torch.equal(kernel.std, tr.std)
        if kernel.stochastic:
            assert torch.equal(kernel.log_ratio(tr.mean, tr.x_s), torch.zeros(B, dtype=torch.float64))
    assert net.passes == sampled


@each_sampler
def test_resimulate_walks_the_stored_means(sampler: Sampler) -> None:
    """With the rollout's noise it gives its states to the bit, with other noise ``mean + std z``; no network runs."""
    net, model = make()
    path = run(model, sampler)
    net.passes = 0
    for tr, x_s in zip(path, resimulate(path, noise()), strict=True):
        assert torch.equal(x_s, tr.x_s)
    z = noise(5)
    for tr, x_s in zip(path, resimulate(path, noise(5)), strict=True):
        expected = tr.mean + tr.std * z(tr.mean) if tr.stochastic else tr.mean
        assert torch.allclose(x_s, expected, rtol=0, atol=1e-15)
    assert net.passes == 0


@each_sampler
def test_taking_samples_is_sampling_fewer(sampler: Sampler) -> None:
    """Rows of a trajectory, states of a multistep solver and conditions included, replay to the rows of the kernels."""
    _, model = make()
    path = run(model, sampler)
    rows = torch.tensor([2, 0])
    part = path.take(rows)
    assert torch.equal(part.x0, path.x0[rows]) and part.cond.index.tolist() == [2, 0]
    for tr, kernel in replay(model, sampler, part):
        assert torch.allclose(kernel.mean, path.transitions[tr.step.i].mean[rows], rtol=0, atol=1e-14)
        assert tr.stages[0].x is tr.x_t or len(tr.stages) == 0


# ---------------------------------------------------------------- sentences


def sentence(action: Callable[[], object]) -> str:
    with pytest.raises(GirsanovError) as error:
        action()
    return str(error.value)


def test_bad_input_is_told() -> None:
    _, model = make()
    x = start()
    assert sentence(lambda: rollout(model, GDDIM(), GRID, x)) == (
        "GDDIM is stochastic and needs noise: pass noise=Noise(seed, iteration, ids)"
    )
    assert sentence(lambda: run(model, Euler(), keep={2, 6})) == "keep names a step outside the grid's 0 .. 5: [2, 6]"
    assert sentence(lambda: run(model, Euler(), grad_from=7)) == "grad_from = 7 lies outside the grid's 0 .. 6"
    assert sentence(lambda: rollout(model, Euler(), GRID, x[:, :2])) == (
        "the model works on samples of shape [3], got [2]"
    )
    assert sentence(lambda: rollout(model, Euler(), GRID, x, conditions().take(torch.tensor([0, 1])))) == (
        "2 conditions for 4 samples: use Cond.take to match them"
    )
    nan = dataclasses.replace(model, net=lambda x, t, c: x / 0)
    assert sentence(lambda: rollout(nan, Euler(), GRID, x)) == (
        "sampling ended in states that are not finite: the network returned NaN or infinity, so go back to an earlier "
        "checkpoint, with a lower learning rate or gradient clipping"
    )
