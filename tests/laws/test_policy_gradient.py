"""Laws of the clipped policy gradient on Gaussian chains."""

import dataclasses

import pytest
import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.advantages import ADVANTAGES, GroupCentred, LeaveOneOut, groups
from girsanov.methods.base import Turn
from girsanov.methods.online import WALK
from girsanov.methods.policy_gradient import ClippedPG, clipped, penalty
from girsanov.methods.policy_gradient.credit import NoiseLevel, ProportionalCredit, RatioNorm
from girsanov.methods.policy_gradient.penalty import PathKL, PerStepKL
from girsanov.methods.policy_gradient.steps import RandomSteps, WindowSteps
from girsanov.policy import Policy
from girsanov.problems import Gaussian, QuadraticReward, affine_kernels, end_law, path_kl_limit, per_step_kl_limit
from girsanov.problems.moments import prior_moments
from girsanov.processes import VP, RectifiedFlow
from girsanov.rollout import rollout
from girsanov.samplers import GDDIM, DPMSolverPP2M, Euler, EulerMaruyama, FlowSDE, Mixed
from girsanov.surrogates import SURROGATES, Clip, Hinge, ScoreFunction, TrustMask
from tests.laws.correction import PLANE, FastTurn, collect, descend, gradient, requests, tunable
from tests.laws.mutation import Mutation, check, mutants

GRID = Grid.uniform(4)
REWARD = QuadraticReward([[0.5, 0.2], [0.2, 0.8]], [0.6, -0.3])
BETA = 0.7


def exact(method: ClippedPG, **changes: object) -> ClippedPG:
    return dataclasses.replace(method, **changes)


UNBIASED = ClippedPG(
    reward=REWARD,
    sampler=GDDIM(1.0),
    grid=GRID,
    advantage=LeaveOneOut(),
    surrogate=ScoreFunction(),
    kl=PathKL(BETA),
)


def pathwise(policy: Policy, method: ClippedPG, n: int, index: int) -> Tensor:
    """Gradient of ``E r - beta KL(path)`` through the chain, noise held fixed (the method's own noise)."""
    prompts, turn = requests(n), FastTurn(0, index)
    model, reference = policy.view("current"), policy.view("reference")
    x = turn.noise(prompts.ids).normal(model.shape, torch.float64)
    noise, cost = turn.noise(prompts.ids, WALK), torch.zeros(n, dtype=torch.float64)
    for step in method.grid:
        kernel = method.sampler.kernel(model, x, step)[0]
        if kernel.stochastic:
            cost = cost + kernel.kl(method.sampler.kernel(reference, x, step)[0].mean)
        x = kernel.sample(noise(x) if kernel.stochastic else None)
    objective = (REWARD(x) - BETA * cost).mean()
    trained = torch.autograd.grad(objective, policy.parameters(), allow_unused=True)
    # The noiseless last step has no density: a policy gradient does not see its correction.
    parts = [g.clone() for g in trained]
    for part in parts:
        part[len(method.grid) - 1] = 0
    return torch.cat([g.flatten() for g in parts])


def largest_z(method: ClippedPG, batches: int = 32, n: int = 512) -> float:
    """Largest z over the parameters of (policy gradient - pathwise gradient), over independent batches.

    Seed 0, groups of 4, 32 batches of 512 samples, 6 parameters for each of 3 steps; the policy is away from the
    reference.
    """
    policy = tunable(PLANE.model(RectifiedFlow()), GRID, scale=0.3)
    steps = len(GRID) - 1
    differences = []
    for i in range(batches):
        batch = collect(method, policy, requests(n, 4), FastTurn(0, i))
        differences.append(-steps * gradient(policy, method, batch) - pathwise(policy, method, n, i))
    values = torch.stack(differences)
    spread = values.std(0) / batches**0.5
    used = spread > 0
    assert int(used.sum()) == 6 * steps
    return float((values.mean(0)[used] / spread[used]).abs().max())


def test_the_expected_gradient_is_the_pathwise_gradient() -> None:
    # 18 two-sided z of t-distribution with 31 degrees of freedom: beyond 4.5 with probability 0.002.
    assert largest_z(UNBIASED) < 4.5


@pytest.mark.parametrize("surrogate", [Clip(0.2, reduce="sum"), Hinge(0.2, reduce="sum"), TrustMask(0.1, reduce="sum")])
def test_every_surrogate_has_the_same_gradient_at_the_first_update(surrogate: object) -> None:
    policy = tunable(PLANE.model(RectifiedFlow()), GRID, scale=0.3)
    method = exact(UNBIASED, surrogate=surrogate)
    batch = collect(method, policy, requests(64, 4))
    torch.testing.assert_close(
        gradient(policy, method, batch), gradient(policy, UNBIASED, batch), rtol=1e-12, atol=1e-14
    )


def test_the_per_step_penalty_has_another_gradient_than_the_path_penalty() -> None:
    assert largest_z(exact(UNBIASED, kl=PerStepKL(BETA))) > 6


def _z_law() -> None:
    assert largest_z(UNBIASED, 16) < 6  # t-distribution with 15 degrees of freedom: beyond 6 with p < 1e-3


MUTATIONS = [
    Mutation(penalty.PathKL, "to_go", "- costs", "* 0", _z_law),
    Mutation(penalty.Penalty, "cost", "self.beta *", "2 *", _z_law),
    Mutation(groups, "leave_one_out", "* (n / (n - 1).clamp_min(1))", "", _z_law),
    Mutation(clipped.ClippedPG, "_step", "loss + (price", "loss - (price", _z_law),
]


@mutants(MUTATIONS)
def test_mutations_are_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)


# ---- the ratio


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("process", [RectifiedFlow(), VP()], ids=["flow", "vp"])
def test_the_ratio_is_one_to_the_bit_at_the_first_update(updates: int, process: object) -> None:
    law = Gaussian(PLANE.mean, PLANE.cov)
    model = law.model(process, "velocity" if isinstance(process, RectifiedFlow) else "eps")
    grid = Grid.uniform(5, start=1.0 if isinstance(process, RectifiedFlow) else 0.98)
    policy = tunable(model, grid, scale=0.1)
    method = exact(UNBIASED, grid=grid, surrogate=Clip(1e-4))
    batch = collect(method, policy, requests(16, 4))
    if updates > 1:
        batch = method.anchor(policy, batch, {})
    for chunk in method.losses(policy, batch, {}):
        for name in ("ratio", "ratio_min", "ratio_max"):
            assert float(chunk.metrics[name]) == 1.0
        assert float(chunk.metrics["sampler_gap"]) == 0.0
        assert float(chunk.metrics["clip_fraction"]) == 0.0


def test_the_anchor_holds_the_old_policy_and_the_log_ratio_is_that_of_the_densities() -> None:
    policy = tunable(PLANE.model(RectifiedFlow()), GRID, scale=0.2)
    method = exact(UNBIASED, surrogate=Clip(1e-3, reduce="sum"), kl=None)
    batch = method.anchor(policy, collect(method, policy, requests(32, 4)), {})
    old = [part.kernel(policy.view()).log_prob(part.tr.x_s).detach() for part in batch.parts]
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.01)
    # The whole loss again, from log-densities and autograd.
    total = torch.zeros((), dtype=torch.float64)
    for part, before in zip(batch.parts, old, strict=True):
        rho = (part.kernel(policy.view()).log_prob(part.tr.x_s) - before).exp()
        kept = rho.clamp(1 - 1e-3, 1 + 1e-3)
        total = total - torch.minimum(rho * part.advantage, kept * part.advantage).mean() / len(batch.parts)
    want = torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).flatten()
            for g, p in zip(torch.autograd.grad(total, policy.parameters()), policy.parameters(), strict=True)
        ]
    )
    torch.testing.assert_close(gradient(policy, method, batch), want, rtol=1e-9, atol=1e-12)
    metrics = [c.metrics for c in method.losses(policy, batch, {})]
    assert all(0 < float(m["clip_fraction"]) < 1 for m in metrics)


def test_the_loss_repeats_to_the_bit_and_micro_batches_add_up() -> None:
    policy = tunable(PLANE.model(RectifiedFlow()), GRID, scale=0.2)
    for kl in (None, PathKL(0.3), PerStepKL(0.3)):
        method = exact(UNBIASED, surrogate=Clip(1e-4), kl=kl)
        batch = collect(method, policy, requests(24, 4))
        whole = gradient(policy, method, batch)
        assert torch.equal(whole, gradient(policy, method, batch))
        rows = torch.arange(24).split(7)
        parts = sum(gradient(policy, method, batch.take(r)) * len(r) / 24 for r in rows)
        torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-13)


def test_sampling_with_other_guidance_or_precision_shows_in_the_sampler_gap() -> None:
    policy = tunable(PLANE.model(RectifiedFlow()), GRID, scale=0.2)
    method = exact(UNBIASED, kl=None)
    batch = collect(method, policy, requests(16, 4))
    shifted = [dataclasses.replace(p, tr=dataclasses.replace(p.tr, mean=p.tr.mean + 0.01)) for p in batch.parts]
    batch = dataclasses.replace(batch, parts=tuple(shifted))
    plain = [c for c in method.losses(policy, batch, {})]
    assert all(float(c.metrics["sampler_gap"]) > 1e-3 and float(c.metrics["ratio"]) == 1 for c in plain)
    corrected = exact(method, correct=1.0)
    assert not torch.equal(gradient(policy, corrected, batch), gradient(policy, method, batch))


# ---- where it ends


@pytest.mark.parametrize(("kl", "limit"), [(PathKL, path_kl_limit), (PerStepKL, per_step_kl_limit)])
def test_it_converges_to_the_limit_of_its_penalty(kl: type, limit: object) -> None:
    """One dimension, 4 steps, 512 samples an iteration, seed 0; the mean of the last weights is within 3 %."""
    law, reward, beta = Gaussian(0.0, 1.0), QuadraticReward(2.0, 2.0), 0.8  # the two limits differ by 11 %
    policy = tunable(law.model(RectifiedFlow()), GRID)
    method = exact(UNBIASED, reward=reward, kl=kl(beta))
    descend(policy, method, requests(512), iterations=150, lr=0.1, tail=50)
    got = end_law(policy.view("ema"), method.sampler, GRID)
    kernels = affine_kernels(law.model(RectifiedFlow()), method.sampler, GRID)
    want = limit(kernels, prior_moments(policy.model), reward, beta).law
    torch.testing.assert_close(got.mean, want.mean, rtol=0.03, atol=0)
    torch.testing.assert_close(got.cov, want.cov, rtol=0.03, atol=0)


def test_dividing_by_the_std_multiplies_beta_by_it() -> None:
    """The gradient of (A / s, beta) is that of (A, beta s), divided by s: large group, so 1 - 1/G = 1 to 0.2 %."""
    policy = tunable(PLANE.model(RectifiedFlow()), GRID, scale=0.2)
    normalised = exact(UNBIASED, advantage=ADVANTAGES["group-normalised"](eps=0.0), kl=PerStepKL(0.5))
    batch = collect(normalised, policy, requests(512))
    s = float(batch.reward.std(correction=0))
    plain = exact(UNBIASED, advantage=GroupCentred(), kl=PerStepKL(0.5 * s))
    torch.testing.assert_close(
        gradient(policy, normalised, batch),
        gradient(policy, plain, collect(plain, policy, requests(512))) / s,
        rtol=1e-9,
        atol=1e-12,
    )


# ---- credit


def test_the_normalised_ratio_has_mean_0_and_a_variance_that_does_not_depend_on_the_noise() -> None:
    """Dimension-mean, old policy: mean(log rho) = -|dmu|^2 / (2 s^2 d); after RatioNorm 0 and |dmu|^2 / d^2.

    Seed 1, 4000 samples of 16 dimensions; z below 4.5.
    """
    g, d, n = torch.Generator().manual_seed(1), 16, 4000
    shift = 0.1 * torch.randn(d, dtype=torch.float64, generator=g)
    size = float(shift.square().mean())
    for std in (0.05, 0.4):
        kernel = clipped.Kernel(shift.expand(n, d), torch.tensor(std, dtype=torch.float64), True)
        x = std * torch.randn(n, d, dtype=torch.float64, generator=g)
        old, step = torch.zeros(n, d, dtype=torch.float64), GRID[0]
        plain = kernel.log_ratio(old, x, "mean")
        seen = RatioNorm()(plain, kernel.kl(old, "mean"), kernel, step)
        assert abs(float(plain.mean()) + size / (2 * std**2)) < 4.5 * float(plain.std()) / n**0.5
        assert abs(float(seen.mean())) < 4.5 * float(seen.std()) / n**0.5
        assert float(seen.var()) == pytest.approx(size / d, rel=4.5 * (2 / n) ** 0.5)


def test_proportional_credit_makes_the_gradient_in_the_velocity_proportional_to_the_step() -> None:
    for step in Grid.uniform(6):
        model = PLANE.model(RectifiedFlow())
        x = torch.ones(1, 2, dtype=torch.float64)
        kernel = FlowSDE(0.7).kernel(model, x, step)[0]
        scaled = ProportionalCredit(2.0)(torch.ones(1, dtype=torch.float64), None, kernel, step)
        assert float(scaled * kernel.gain.abs() / kernel.std) == pytest.approx(2.0 * float(step.h.abs()), rel=1e-12)


def test_the_noise_level_weight_evens_out_flow_sde() -> None:
    """``std |gain| / std / |dt| = 1 + a^2 / 2`` at every time but the first, where alpha = 0 is replaced."""
    for step in list(Grid.uniform(6))[1:]:
        kernel = FlowSDE(0.7).kernel(PLANE.model(RectifiedFlow()), torch.ones(1, 2, dtype=torch.float64), step)[0]
        size = NoiseLevel(1.0)(kernel, step) * kernel.gain.abs() / kernel.std / step.h.abs()
        assert float(size) == pytest.approx(1 + 0.49 / 2, rel=1e-12)


# ---- which steps, which samplers


@pytest.mark.parametrize("surrogate", list(SURROGATES))
@pytest.mark.parametrize(
    "sampler",
    [GDDIM(0.5), EulerMaruyama(1.0), FlowSDE(0.7), Mixed(GDDIM(1.0), DPMSolverPP2M(), 1, 2)],
    ids=lambda s: type(s).__name__,
)
def test_every_stochastic_sampler_takes_every_surrogate(surrogate: str, sampler: object) -> None:
    policy = tunable(PLANE.model(RectifiedFlow()), GRID, scale=0.1)
    method = exact(UNBIASED, sampler=sampler, surrogate=SURROGATES[surrogate]())
    batch = collect(method, policy, requests(8, 4))
    assert [p.tr.step.i for p in batch.parts] == (
        [1, 2] if isinstance(sampler, Mixed) else [0, 1, 2, 3][: len(batch.parts)]
    )
    assert float(gradient(policy, method, batch).abs().max()) > 0


def test_random_steps_and_windows_pick_what_they_say() -> None:
    steps = RandomSteps(0.5)
    picks = [steps(8, Turn(3, i)) for i in range(40)]
    assert all(len(p) == 4 and p == sorted(set(p)) for p in picks)
    assert set().union(*picks) == set(range(8)) and steps(8, Turn(3, 7)) == picks[7]
    assert WindowSteps(2, 3)(5, Turn(0, 0)) == [2, 3, 4]
    policy = tunable(PLANE.model(RectifiedFlow()), GRID)
    batch = collect(exact(UNBIASED, steps=WindowSteps(1, 1)), policy, requests(8, 4))
    assert [p.tr.step.i for p in batch.parts] == [1]


def test_a_group_may_start_from_one_noise() -> None:
    policy = tunable(PLANE.model(RectifiedFlow()), GRID)
    batch = collect(exact(UNBIASED, same_start=True), policy, requests(8, 4))
    x = batch.parts[0].tr.x_t
    assert torch.equal(x[0], x[3]) and not torch.equal(x[0], x[4])
    assert not torch.equal(batch.parts[1].tr.x_t[0], batch.parts[1].tr.x_t[3])


# ---- masks and errors


def test_a_group_of_equal_rewards_adds_nothing_not_even_kl() -> None:
    class Flat(QuadraticReward):
        def __call__(self, x: Tensor, prompts: object = None) -> Tensor:
            r = super().__call__(x)
            return torch.where(torch.arange(len(x)) < 4, torch.ones_like(r), r)

    policy = tunable(PLANE.model(RectifiedFlow()), GRID, scale=0.2)
    method = exact(UNBIASED, reward=Flat(REWARD.A, REWARD.b), kl=PerStepKL(0.5), advantage=GroupCentred())
    batch = collect(method, policy, requests(8, 4))
    assert batch.mask.tolist() == [False] * 4 + [True] * 4
    assert float(batch.metrics()["zero_variance"]) == 0.5
    flat = batch.take(torch.arange(4))
    assert float(gradient(policy, method, flat).abs().max()) == 0.0
    assert all(float(c.loss.detach()) == 0 for c in method.losses(policy, flat, {}))


def test_a_deterministic_sampler_is_refused() -> None:
    with pytest.raises(GirsanovError) as error:
        ClippedPG(reward=REWARD, sampler=Euler())
    assert str(error.value) == (
        "a policy gradient needs steps that have a density and Euler has none: use a stochastic single-step sampler, "
        "for example GDDIM(eta=1.0), or Mixed(GDDIM(1.0), DPMSolverPP2M())"
    )
    with pytest.raises(GirsanovError, match="and DPMSolverPP2M has none"):
        ClippedPG(reward=REWARD, sampler=DPMSolverPP2M())


def test_a_window_outside_the_steps_is_refused() -> None:
    policy = tunable(PLANE.model(RectifiedFlow()), GRID)
    with pytest.raises(GirsanovError) as error:
        collect(exact(UNBIASED, steps=WindowSteps(2, 2)), policy, requests(4))
    assert str(error.value) == (
        "the window of trained steps 2 .. 3 leaves the 3 steps that have noise: move it, shorten it, or take more steps"
    )


def test_a_grid_without_noise_is_refused() -> None:
    policy = tunable(PLANE.model(RectifiedFlow()), Grid.uniform(1))
    with pytest.raises(GirsanovError) as error:
        collect(exact(UNBIASED, grid=Grid.uniform(1)), policy, requests(4))
    assert str(error.value) == (
        "no step of the grid draws noise under GDDIM, so there is nothing to train: take more steps (the last step to "
        "t = 0 is noiseless)"
    )


def test_nothing_is_drawn_after_collecting() -> None:
    """A rollout with the same noise gives the same batch, whatever was done in between."""
    policy = tunable(PLANE.model(RectifiedFlow()), GRID)
    first = collect(UNBIASED, policy, requests(8, 4))
    torch.manual_seed(99)
    rollout(policy.view(), Euler(), GRID, torch.randn(3, 2, dtype=torch.float64))
    again = collect(UNBIASED, policy, requests(8, 4))
    assert all(torch.equal(a.tr.x_s, b.tr.x_s) for a, b in zip(first.parts, again.parts, strict=True))
