"""Direct reward gradients against autograd through the whole chain, finite differences, and products of Jacobians.

Float64; seeds are those of the keyed noise; tolerances are rounding, not statistics.
"""

import dataclasses

import pytest
import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.base import Turn
from girsanov.methods.direct import base as direct_base
from girsanov.methods.direct import gradient, lv, refl
from girsanov.methods.direct.gradient import AlignProp, DirectGradient
from girsanov.methods.direct.lv import DRaFTLV
from girsanov.methods.direct.objectives import Distance, Hinge, Maximise
from girsanov.methods.direct.refl import ReFL
from girsanov.methods.direct.truncation import GaussianK, LastK, UniformK
from girsanov.models import denoised
from girsanov.policy import Policy
from girsanov.problems import Gaussian, Mixture, QuadraticReward
from girsanov.problems.moments import affine_kernels
from girsanov.processes import VP, RectifiedFlow
from girsanov.rewards.base import Reward
from girsanov.rollout import rollout
from girsanov.samplers import GDDIM, DPMSolverPP2M, Euler, Heun, MemorylessFlow, Mixed, Sampler
from tests.laws.mutation import Mutation, check, mutants
from tests.laws.test_ode_am import Ring
from tests.laws.tuning import F64, affine_policy, close, gradients, lift, requests

MODES = Mixture([0.6, 0.4], [[-1.0, 0.5], [1.2, -0.3]], [[[0.3, 0.1], [0.1, 0.4]], [[0.5, -0.2], [-0.2, 0.2]]])
FLOW, N = RectifiedFlow(), 5
SAMPLERS: dict[str, Sampler] = {
    "euler": Euler(),
    "heun": Heun(),
    "dpm-solver++": DPMSolverPP2M(),
    "ddpm": GDDIM(1.0),
    "memoryless": MemorylessFlow(),
    "mixed": Mixed(GDDIM(1.0), DPMSolverPP2M(), start=1, length=2),
}


def setting(seed: int = 0) -> tuple[Policy, Grid]:
    """A nonlinear field whose affine part is tuned, moved away from its start."""
    grid = Grid.uniform(N)
    return affine_policy(MODES.model(FLOW), grid, seed=seed), grid


def chain(policy: Policy, sampler: Sampler, grid: Grid, n: int, k: int, reward: Reward) -> Tensor:
    """``-mean r`` of a plain rollout on the same noise, its gradient cut before the last k steps."""
    noise = Turn(0, 0).noise(requests(n).ids)
    x_T = policy.model.process.prior(noise.normal((2,), F64))
    return -reward(rollout(policy.view(), sampler, grid, x_T, noise=noise, grad_from=len(grid) - k).x0).mean()


@pytest.mark.parametrize("k", [N, 3, 1])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_gradient_is_that_of_the_whole_chain(name: str, k: int) -> None:
    policy, grid = setting()
    method = DirectGradient(reward=Ring(), sampler=SAMPLERS[name], grid=grid, truncation=LastK(k))
    batch = method.collect(policy, requests(4), {}, Turn(0, 0))
    assert batch.x.requires_grad is False
    loss = chain(policy, SAMPLERS[name], grid, 4, k, Ring())
    wanted = torch.autograd.grad(loss, policy.parameters())
    close(gradients(method, policy, batch), wanted, 1e-12)
    close(next(iter(method.losses(policy, batch, {}))).loss, loss, 1e-12)
    assert wanted[0].abs().max() > 1e-3


@pytest.mark.parametrize("name", ["euler", "ddpm"])
def test_the_full_gradient_is_the_slope_of_the_loss(name: str) -> None:
    """Central differences with step 1e-5 in eight random directions."""
    policy, grid = setting()
    method = DirectGradient(reward=Ring(), sampler=SAMPLERS[name], grid=grid)
    (p,) = policy.parameters()
    (slope,) = gradients(method, policy, method.collect(policy, requests(4), {}, Turn(0, 0)))
    g = torch.Generator().manual_seed(0)
    for _ in range(8):
        direction = torch.randn(p.shape, dtype=F64, generator=g)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                p.add_(direction, alpha=sign * 1e-5)
                values.append(float(chain(policy, SAMPLERS[name], grid, 4, N, Ring())))
                p.sub_(direction, alpha=sign * 1e-5)
        assert float((slope * direction).sum()) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("k", [1, 2, N])
def test_a_linear_denoiser_gives_products_of_jacobians(k: int) -> None:
    """Affine steps F_j, in which W_j enters with gain_j: ``dr/dW_j = gain_j (F_N .. F_{j+1})^T grad r (x_j, 1)^T``."""
    law, grid = Gaussian([0.8, -0.2], [[1.69, 0.3], [0.3, 0.8]]), Grid.uniform(N)
    reward = QuadraticReward([[1.5, 0.2], [0.2, 1.0]], [0.6, 0.1])
    policy = affine_policy(law.model(FLOW), grid, seed=1)
    method = DirectGradient(reward=reward, sampler=Euler(), grid=grid, truncation=LastK(k))
    batch = method.collect(policy, requests(6), {}, Turn(0, 0))
    with torch.no_grad():
        kernels = affine_kernels(policy.view(), Euler(), grid)
        x_T = Turn(0, 0).noise(requests(6).ids).normal((2,), F64)
        path = rollout(policy.view(), Euler(), grid, x_T)
        slope, wanted = reward.b - path.x0 @ reward.A, torch.zeros(N + 1, 2, 3, dtype=F64)
        for j in reversed(range(N - k, N)):
            gain = float(kernels[j].gain or 0.0)
            wanted[j] = -gain * torch.einsum("bi,bj->ij", slope, lift(path.transitions[j].x_t)) / 6
            slope = slope @ kernels[j].F
    close(gradients(method, policy, batch), [wanted], 1e-12)


def test_checkpointing_changes_no_gradient() -> None:
    for sampler in SAMPLERS.values():
        policy, grid = setting()
        plain = DirectGradient(reward=Ring(), sampler=sampler, grid=grid)
        batch = plain.collect(policy, requests(3), {}, Turn(0, 0))
        found = gradients(dataclasses.replace(plain, checkpoint=True), policy, batch)
        assert torch.equal(found[0], gradients(plain, policy, batch)[0])


@pytest.mark.parametrize("sampler", [Euler(), GDDIM(0.0)], ids=repr)
def test_refl_at_the_last_step_is_draft_1(sampler: Sampler) -> None:
    policy, grid = setting()
    one = DirectGradient(reward=Ring(), sampler=sampler, grid=grid, truncation=LastK(1))
    same = ReFL(reward=Ring(), sampler=sampler, grid=grid, truncation=LastK(1))
    batches = [m.collect(policy, requests(4), {}, Turn(0, 0)) for m in (one, same)]
    close(gradients(same, policy, batches[1]), gradients(one, policy, batches[0]), 1e-12)
    early = ReFL(reward=Ring(), sampler=sampler, grid=grid, truncation=LastK(3))
    gap = (
        gradients(early, policy, early.collect(policy, requests(4), {}, Turn(0, 0)))[0]
        - gradients(one, policy, batches[0])[0]
    )
    assert gap.abs().max() > 1e-3


@pytest.mark.parametrize("k", [1, 3])
def test_refl_is_the_reward_of_the_denoised_prediction(k: int) -> None:
    """A stochastic sampler on a VP process, the paper's hinge."""
    grid = Grid.uniform(N, 1.0, 0.01)
    policy = affine_policy(MODES.model(VP(), "eps"), grid, seed=2)
    method = ReFL(reward=Ring(), sampler=GDDIM(1.0), grid=grid, truncation=LastK(k), objective=Hinge(2.0, 1e-3))
    batch = method.collect(policy, requests(4), {}, Turn(0, 0))
    noise = Turn(0, 0).noise(requests(4).ids)
    with torch.no_grad():
        x = noise.normal((2,), F64)
        x = rollout(policy.view(), GDDIM(1.0), grid, x, noise=noise).transitions[N - k].x_t
    c, eps = VP()(grid[N - k].t), policy.view()(x, grid[N - k].t)
    reward = Ring()((x - float(c.sigma) * eps) / float(c.alpha))
    wanted = torch.autograd.grad(1e-3 * (2 - reward).clamp_min(0).mean(), policy.parameters())
    assert bool((reward < 2).all())
    close([g * 1e3 for g in gradients(method, policy, batch)], [g * 1e3 for g in wanted], 1e-12)


def test_draft_lv_is_the_mean_over_noised_copies_of_the_sample() -> None:
    policy, grid = setting()
    method = DRaFTLV(reward=Ring(), sampler=Euler(), grid=grid, copies=3)
    batch = method.collect(policy, requests(4), {}, Turn(0, 0))
    noise = Turn(0, 0).noise(requests(4).ids)
    with torch.no_grad():
        x0 = rollout(policy.view(), Euler(), grid, noise.normal((2,), F64)).x0
    t, losses = grid[N - 1].t, []
    for _ in range(3):
        x = (1 - t) * x0 + t * noise.normal((2,), F64)
        losses.append(-Ring()(x - t * policy.view()(x, t)).mean())
    wanted = torch.autograd.grad(torch.stack(losses).mean(), policy.parameters())
    close(gradients(method, policy, batch), wanted, 1e-12)


def test_losses_are_the_same_twice_and_micro_batches_add_up() -> None:
    policy, grid = setting()
    parts = {"reward": Ring(), "sampler": GDDIM(1.0), "grid": grid}
    multistep = DirectGradient(reward=Ring(), sampler=DPMSolverPP2M(), grid=grid, truncation=LastK(2))
    for method in (DirectGradient(**parts), multistep, DRaFTLV(**parts), ReFL(**parts), AlignProp(**parts)):
        batch = method.collect(policy, requests(6), {}, Turn(0, 0))
        first = gradients(method, policy, batch)
        assert torch.equal(first[0], gradients(method, policy, batch)[0])
        halves = [gradients(method, policy, batch.take(torch.arange(i, i + 3)))[0] for i in (0, 3)]
        close(first, [(halves[0] + halves[1]) / 2], 1e-12)


def test_truncations_are_keyed_and_have_their_law() -> None:
    """Frequencies over 400 iterations, seed 0; z threshold 4."""
    turns = [Turn(0, i) for i in range(400)]
    uniform = torch.tensor([UniformK()(10, turn) for turn in turns])
    assert set(uniform.tolist()) == set(range(1, 11))
    counts = torch.bincount(uniform, minlength=11)[1:].double()
    assert ((counts - 40).abs() / (400 * 0.1 * 0.9) ** 0.5).max() < 4
    late = {UniformK(0.0, 0.25)(40, turn) for turn in turns}
    assert late == set(range(1, 11))  # ReFL: the prediction is made at one of the steps 30 .. 39
    gaussian = torch.tensor([GaussianK()(50, turn) for turn in turns]).double()
    assert abs(float(gaussian.mean()) - 8.2) < 4 * 5 / 20 and float(gaussian.min()) >= 1  # .2 more by the cut at 1
    assert GaussianK()(50, turns[3]) == GaussianK()(50, turns[3])
    assert len({UniformK()(1, turn) for turn in turns[:5]}) == 1


def test_alignprop_is_draft_k_with_its_defaults() -> None:
    policy, grid = setting()
    method = AlignProp(reward=Ring(), sampler=Euler(), grid=grid)
    batch = method.collect(policy, requests(3), {}, Turn(0, 4))
    k = GaussianK()(N, Turn(0, 4))
    same = DirectGradient(reward=Ring(), sampler=Euler(), grid=grid, truncation=LastK(k))
    wanted = gradients(same, policy, same.collect(policy, requests(3), {}, Turn(0, 4)))
    close(gradients(method, policy, batch), wanted, 1e-14)
    scaled = dataclasses.replace(method, objective=Distance(10.0, 0.01))  # the released code; Ring is below 10
    close([g * 100 for g in gradients(scaled, policy, batch)], wanted, 1e-12)


def test_objectives() -> None:
    r = torch.tensor([-1.0, 1.5, 3.0], dtype=F64)
    assert Maximise()(r).tolist() == [1.0, -1.5, -3.0]
    assert Hinge(2.0, 0.5)(r).tolist() == [1.5, 0.25, 0.0]
    assert Distance(2.0, 0.5)(r).tolist() == [1.5, 0.25, 0.5]


class Flat(Reward):
    """Declares a gradient that it does not have."""

    name, differentiable = "flat", True

    def __call__(self, x: Tensor, prompts: object = None) -> Tensor:
        return x.detach().sum(1)


def test_bad_parts_are_refused() -> None:
    policy, grid = setting()
    with pytest.raises(GirsanovError, match="the reward 'flat' gives no gradient, and this method differentiates it"):
        method = DirectGradient(reward=Flat(), grid=grid)
        list(method.losses(policy, method.collect(policy, requests(2), {}, Turn(0, 0)), {}))
    with pytest.raises(GirsanovError, match="k = 6 exceeds the 5 steps of the grid"):
        DirectGradient(reward=Ring(), grid=grid, truncation=LastK(6))
    blunt = type("Blunt", (Ring,), {"differentiable": False, "name": "blunt"})()
    for method_type in (DirectGradient, ReFL, DRaFTLV, AlignProp):
        with pytest.raises(GirsanovError, match="needs a differentiable reward and 'blunt' is not one"):
            method_type(reward=blunt)


def law() -> None:
    test_the_gradient_is_that_of_the_whole_chain("ddpm", 3)
    test_draft_lv_is_the_mean_over_noised_copies_of_the_sample()
    test_refl_at_the_last_step_is_draft_1(Euler())


MUTATIONS = [
    Mutation(gradient.DirectGradient, "collect", "len(self.grid) - k", "len(self.grid) - k + 1", law),
    Mutation(gradient.LastK, "__call__", "else self.k", "else min(n, self.k + 1)", law),
    Mutation(direct_base, "reward_chunk", "objective(reward)", "-objective(reward)", law),
    Mutation(direct_base, "run_up_to", "noise(x_T) for", "x_T for", law),
    Mutation(lv.DRaFTLV, "losses", "chunk.loss / self.copies", "chunk.loss", law),
    Mutation(lv.DRaFTLV, "losses", "c.alpha, c.sigma", "c.sigma, c.alpha", law),
    Mutation(refl.ReFL, "losses", "batch.first.i", "batch.first.i - 1", law),
]


@mutants(MUTATIONS)
def test_defects_are_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)


def test_denoised_is_the_posterior_mean_on_an_exact_network() -> None:
    x, t = torch.tensor([[0.3, -0.7]], dtype=F64), torch.tensor(0.4, dtype=F64)
    post = MODES.posterior(x, 1 - t, t)
    for kind in ("velocity", "eps", "x0", "v", "score"):
        close(denoised(MODES.model(FLOW, kind), x, t), post.average(post.means), 1e-12)
