"""Half-precision states under every method that keeps those of its chains: what is replayed is what was sampled.

Seed 0, 8 samples in groups of two, float32 networks. All samples go through the network at once, in the rollout as in
the training passes, so that both are the same arithmetic and equality is to the bit.
"""

import dataclasses
import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from girsanov.config import load_config
from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods import METHODS
from girsanov.methods.adjoint.gauss_newton import GaussNewton
from girsanov.methods.base import Turn
from girsanov.methods.continuous.trust import SquareRootKL
from girsanov.methods.states import KeepsStates
from girsanov.problems import LinearReward
from girsanov.recipes.mixture import MixtureConfig
from girsanov.samplers.heun import Heun
from girsanov.starts import STORAGE, Storage
from girsanov.train import Run, iterate
from girsanov.types import Batch, Trajectory, Transition, wide
from tests.laws.mutation import Mutation, check, mutants
from tests.tiny import tiny_run

loop = importlib.import_module("girsanov.rollout")  # the package gives the function that name
CALLERS = [
    importlib.import_module(f"girsanov.methods.{name}")
    for name in ("online", "adjoint.matching", "adjoint.ode", "preference.candidates", "policy_gradient.trees")
]
KEPT = sorted(name for name, cls in METHODS.items() if issubclass(cls, KeepsStates))
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in KEPT} | {
    "ode-am, Heun": ("ode-am", {"sampler": Heun()}),
    "ode-am, Gauss-Newton": ("ode-am", {"target": GaussNewton(2)}),
    "am, noiseless": ("am", {"noiseless_last": True}),
    "ctrl, trust region": ("ctrl", {"trust": SquareRootKL()}),
    "d3po, lots": ("d3po", {"rollout_micro_batch": 8}),
}
GRID = Grid.uniform(6)
HALF = torch.bfloat16


def tuned(case: str, storage: Storage | None = "bf16", **train: Any) -> Run:
    """A run of the method on six steps; its windows of trained steps as they are."""
    name, options = OPTIONS[case]
    asked = {"reward": LinearReward([1.0, 0.5]), "storage": storage, "grid": GRID, **options}
    return tiny_run(METHODS[name](**asked), dtype=torch.float32, ema=None, **train)


Seen = list[tuple[tuple[Any, ...], Trajectory]]


def watched(monkeypatch: pytest.MonkeyPatch, change: Callable[[Trajectory], Trajectory] = lambda path: path) -> Seen:
    """Every rollout from here on, with its model, sampler and grid; the method gets what ``change`` makes of it."""
    seen: Seen = []

    def spy(*args: Any, **options: Any) -> Trajectory:
        path = loop.rollout(*args, **options)
        path = change(path)
        seen.append((args[:3], path))
        return path

    for module in CALLERS:
        monkeypatch.setattr(module, "rollout", spy)
    return seen


def widened(path: Trajectory) -> Trajectory:
    """The same states kept in float32."""
    made = []
    for tr in path:
        x_t = tr.asked
        stages = tuple(dataclasses.replace(s, x=x_t if s.x is tr.x_t else s.x) for s in tr.stages)
        made.append(dataclasses.replace(tr, x_t=x_t, x_s=wide(tr.x_s), stages=stages))
    return dataclasses.replace(path, transitions=tuple(made))


def follows(now: Transition, after: Transition) -> bool:
    """Whether a step begins where the one before ended."""
    ended = now.x_s if after.parent is None else now.x_s[after.parent]
    return torch.equal(ended, after.x_t)


def replays(seen: Seen, dtype: torch.dtype) -> None:
    """The kernels at the stored states are those that were drawn from, to the bit, and each step begins at one."""
    assert seen, "no rollout was seen"
    for (model, sampler, _), path in seen:
        assert len(path.transitions) > 0
        for tr in path:
            assert tr.x_t.dtype == tr.x_s.dtype == dtype and tr.mean.dtype == torch.float32
            kernel = sampler.kernel(model, tr.asked, tr.step, tr.cond, tr.state)[0]
            assert torch.equal(kernel.mean, tr.mean), "the network saw another state"
            if tr.stochastic:
                assert torch.equal(kernel.log_ratio(tr.mean, tr.x_s), torch.zeros(len(tr.x_s), dtype=torch.float64))
        assert all(follows(a, b) for a, b in zip(path.transitions, path.transitions[1:], strict=False))
        assert torch.equal(path.x0, wide(path.transitions[-1].x_s)) and path.x0.dtype == torch.float32


def collected(run: Run) -> Batch:
    """The first batch."""
    return run.method.collect(run.policy, run.prompts.batch(0, 0, 1), run.state, Turn(0, 0, 6))


def losses(run: Run) -> Tensor:
    """The losses of the first batch and their gradient's norm by parameter."""
    batch = run.method.anchor(run.policy, collected(run), run.state)
    found = [chunk.loss for chunk in run.method.losses(run.policy, batch, run.state)]
    torch.stack([v.double() for v in found]).sum().backward()
    grads = [torch.zeros(()) if p.grad is None else p.grad.norm() for p in run.parameters()]
    return torch.stack([v.detach().double() for v in [*found, *grads]])


@pytest.mark.parametrize("case", OPTIONS)
def test_the_states_are_those_that_were_sampled(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replayed kernels agree to the bit; ratios are 1 and the gap of sampler and trainer 0 at the first update."""
    with monkeypatch.context() as patch:
        seen = watched(patch)
        collected(tuned(case))
    replays(seen, HALF)
    first = iterate(tuned(case, epochs=2))
    assert first.get("first/ratio_min", 1.0) == first.get("first/ratio_max", 1.0) == 1.0
    assert iterate(tuned(case)).get("sampler_gap", 0.0) == 0.0
    assert ("first/ratio_min" in first) == (hasattr(METHODS[OPTIONS[case][0]], "surrogate") or case == "ctrl-ratio")


@pytest.mark.parametrize("case", OPTIONS)
def test_only_the_memory_differs(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and gradients equal those of the same states kept in float32, to the bit; the batch is smaller."""
    half = losses(tuned(case))
    seen = watched(monkeypatch, widened)
    full = losses(tuned(case))
    replays(seen, torch.float32)
    assert bool(half.isfinite().all()) and bool((half != 0).any())
    assert torch.equal(half, full)


def rounded(path: Trajectory) -> Trajectory:
    """What is kept, in bf16: nothing changes where it is that already."""
    half = [dataclasses.replace(tr, x_t=tr.x_t.to(HALF), x_s=tr.x_s.to(HALF)) for tr in path]
    return dataclasses.replace(path, transitions=tuple(half))


def law(case: str) -> None:
    """``replays``, for whatever a rollout gives, rounded."""
    with pytest.MonkeyPatch.context() as patch:
        seen = watched(patch, rounded)
        collected(tuned(case))
    replays(seen, HALF)


ROLLOUTS = ["clipped-pg", "branch-grpo", "mix-grpo", "ctrl", "am", "ode-am", "d3po", "prdp", "dlpo", "spo"]
"""One of each way to collect: the other names share its code."""


@mutants([Mutation(loop, "rollout", ".to(x.dtype)", "", partial(law, case)) for case in ROLLOUTS])
def test_rounding_afterwards_is_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollout that goes on from float32 while rounded states are kept fails the law, under every method."""
    check(mutation, monkeypatch)


@pytest.mark.parametrize("name", KEPT)
def test_a_dtype_that_is_not_taken_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting reaches the rollout: fp16 and the policy's own dtype are found in it."""
    for storage, dtype in {**STORAGE, None: torch.float32}.items():
        with monkeypatch.context() as patch:
            seen = watched(patch)
            collected(tuned(name, storage))
        assert all(tr.x_t.dtype == tr.x_s.dtype == dtype for _, path in seen for tr in path)


@pytest.mark.parametrize("name", ["nft", "draft", "diffusion-dpo", "rwr"])
def test_a_method_without_chains_refuses_it(name: str) -> None:
    """One sentence, with the place of the setting."""
    with pytest.raises(GirsanovError, match=r"method.storage is refused: this method goes back to no states"):
        load_config(MixtureConfig, {"method": {"kind": name, "storage": "bf16"}})


def test_who_keeps_states() -> None:
    """Every method that replays or linearises a chain, and no other."""
    others = set(METHODS) - set(KEPT)
    forward = {"nft", "awm", "fpo", "ram", "rvm", "orw-cfm-w2", "dgpo", "crd", "online-dpo", "rwr"}  # ends alone
    offline = {"diffusion-dpo", "diffusion-sdpo", "dspo", "mapo", "rank-dpo", "diffusion-kto"}  # no chains
    assert others == forward | offline | {"draft", "draft-lv", "alignprop", "refl"}  # the graph keeps theirs
