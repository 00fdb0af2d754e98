"""Adjoint matching against the discrete fixed point, the published forms, and the whole chain's gradient.

Float64. Populations are sigma points with exact moments, so tolerances are rounding, not statistics.
"""

import math

import pytest
import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.adjoint import matching
from girsanov.methods.adjoint.matching import AdjointMatching
from girsanov.methods.base import Turn
from girsanov.methods.policy_gradient.steps import Subset
from girsanov.models import Model, velocity
from girsanov.noise import Recorded
from girsanov.policy import Policy
from girsanov.problems import Gaussian, LinearReward, Mixture, QuadraticReward, tilt
from girsanov.problems.moments import affine_kernels, chain_law, end_law, prior_moments
from girsanov.problems.recursions import lean_adjoint_limit, path_kl_limit
from girsanov.processes import VE, VP, RectifiedFlow, VPTable
from girsanov.rollout import rollout
from girsanov.samplers import GDDIM, AffineSampler, DPMSolverPP2M, Euler, EulerMaruyama, Heun, MemorylessFlow, Mixed
from tests.laws.mutation import Mutation, check, mutants
from tests.laws.test_ode_am import Ring
from tests.laws.tuning import F64, ExactTurn, affine_policy, close, requests, solve

LAW = Gaussian([0.8, -0.2], [[1.69, 0.3], [0.3, 0.8]])
REWARD = QuadraticReward([[1.5, 0.2], [0.2, 1.0]], [0.6, 0.1])
MODES = Mixture([0.6, 0.4], [[-1.0, 0.5], [1.2, -0.3]], [[[0.3, 0.1], [0.1, 0.4]], [[0.5, -0.2], [-0.2, 0.2]]])
FLOW = RectifiedFlow()
CASES: dict[str, tuple[AffineSampler, Model, Grid]] = {
    "memoryless-flow": (MemorylessFlow(), LAW.model(FLOW), Grid.uniform(5)),
    "gddim-flow": (GDDIM(1.0), LAW.model(FLOW), Grid.uniform(5)),
    "gddim-vp": (GDDIM(1.0), LAW.model(VP()), Grid.uniform(5, 1.0, 0.01)),
    "euler-maruyama-vp": (EulerMaruyama(1.0), LAW.model(VP()), Grid.uniform(5, 1.0, 0.2)),
    "gddim-ve": (GDDIM(1.0), LAW.model(VE(20.0)), Grid.karras(5, VE(20.0), start=1.0)),
}


def trained(name: str, reward: QuadraticReward, beta: float, n: int = 40) -> tuple[AdjointMatching, Policy]:
    """The method and its policy after the population iteration."""
    sampler, base, grid = CASES[name]
    policy = affine_policy(base, grid)
    method = AdjointMatching(reward=reward, beta=beta, sampler=sampler, grid=grid)
    solve(method, policy, ExactTurn(0, 0, d=2, draws=len(grid) + 1), n, 0.5)
    return method, policy


@pytest.mark.parametrize("name", CASES)
def test_it_converges_to_the_discrete_fixed_point(name: str) -> None:
    """The population iteration ends at the path-KL optimum of the same grid, to rounding."""
    method, policy = trained(name, REWARD, 1.2)
    base, start = policy.view("reference"), prior_moments(policy.model)
    reference = affine_kernels(base, method.sampler, method.grid)
    found = chain_law(affine_kernels(policy.view(), method.sampler, method.grid), *start)
    limit = path_kl_limit(reference, start, REWARD, 1.2).law
    assert (limit.mean - chain_law(reference, *start).mean).abs().max() > 0.05
    close([found.mean, found.cov], [limit.mean, limit.cov], 1e-8)


def test_a_linear_reward_tilts_the_end_law_of_the_discrete_chain() -> None:
    """With noise in every step and no value at the start: a tenth of a per cent asks for ten steps."""
    reward = LinearReward([0.6, -0.3])
    sampler, grid = MemorylessFlow(), Grid.uniform(10)
    base = LAW.model(FLOW)
    policy = affine_policy(base, grid)
    method = AdjointMatching(reward=reward, beta=0.8, sampler=sampler, grid=grid)
    solve(method, policy, ExactTurn(0, 0, d=2, draws=11), 3, 1.0)  # the costate does not depend on the path
    found = end_law(policy.view(), sampler, grid)
    wanted = tilt(end_law(base, sampler, grid), reward, 0.8)
    shift = wanted.mean - end_law(base, sampler, grid).mean
    assert ((found.mean - wanted.mean) / shift).abs().max() < 1e-3
    close(found.cov, wanted.cov, 1e-3)


def test_the_loss_is_stationary_at_the_fixed_point_and_not_beside_it() -> None:
    method, policy = trained("memoryless-flow", REWARD, 1.2, n=60)
    turn = ExactTurn(0, 0, d=2, draws=6)

    def slope() -> Tensor:
        batch = method.collect(policy, requests(turn.samples), {}, turn)
        return torch.autograd.grad(sum(c.loss for c in method.losses(policy, batch, {})), policy.parameters())[0]

    assert slope().abs().max() < 1e-9
    with torch.no_grad():
        policy.parameters()[0][1] += 0.01
    assert slope().abs().max() > 1e-4


@pytest.mark.parametrize("name", CASES)
def test_the_costate_is_the_gradient_of_the_whole_chain(name: str) -> None:
    """Untuned on fixed noise: ``beta u* gain / std^2`` is the derivative of the reward in the state after the step."""
    sampler, plain, grid = CASES[name]
    base = MODES.model(plain.process)
    policy, beta = affine_policy(base, grid), 0.7
    method = AdjointMatching(reward=Ring(), beta=beta, sampler=sampler, grid=grid)
    batch = method.collect(policy, requests(4), {}, Turn(5, 0))
    noise = Turn(5, 0).noise(requests(4).ids)
    x_T = base.process.prior(noise.normal((2,), F64))
    path = rollout(base, sampler, grid, x_T.requires_grad_(True), noise=noise)
    steps = [tr for tr in path if tr.stochastic]
    assert len(batch.targets) == len(steps)
    for tr, target in zip(steps, batch.targets, strict=True):
        (slope,) = torch.autograd.grad(Ring()(path.x0).sum(), tr.x_s, retain_graph=True)
        gain = float(sampler.kernel(base, tr.x_t, tr.step)[0].gain)
        close(target.control * gain / float(tr.std) ** 2 * beta, slope, 1e-10)
        assert target.weight == pytest.approx((gain / float(tr.std)) ** 2, rel=1e-12)


def paper_flow_loss(
    tuned: Model, base: Model, n: int, beta: float, noise: list[Tensor], noiseless: bool, clip: float | None
) -> Tensor:
    """Algorithm 1 in the paper's clock (data at 1), with its offsets: the sum over steps, the mean over samples."""
    h, x, lam = 1.0 / n, noise[0], 1.0 / beta
    states = []

    def field(model: Model, x: Tensor, u: float) -> Tensor:
        return -velocity(model, x, torch.tensor(1.0 - u, dtype=F64))

    def drift(model: Model, x: Tensor, u: float) -> Tensor:
        return 2 * field(model, x, u) - x / (u + h)

    def sigma(u: float) -> float:
        return math.sqrt(2 * (1 - u + h) / (u + h))

    for k in range(n):
        u = k * h
        states.append(x)
        x = x + h * drift(tuned, x, u) + math.sqrt(h) * sigma(u) * noise[k + 1]
    end = states[-1] + h * field(base, states[-1], 1 - h) if noiseless else x
    end = end.detach().requires_grad_(True)
    a = -lam * torch.autograd.grad(Ring()(end).sum(), end)[0]
    total = torch.zeros((), dtype=F64)
    for k in reversed(range(n)):
        u, x = k * h, states[k].detach().requires_grad_(True)
        gap = field(tuned, x, u) - field(base, x, u)
        term = (2 / sigma(u) * gap + sigma(u) * a).square().sum(1)
        total = total + (term if clip is None else term.clamp_max(clip * lam**2)).mean()
        a = a + h * torch.autograd.grad(drift(base, x, u), x, a)[0]
    return total.detach()


@pytest.mark.parametrize("noiseless", [False, True])
@pytest.mark.parametrize("clip", [None, 1.6])
def test_it_is_the_published_flow_form(noiseless: bool, clip: float | None) -> None:
    n, beta = 6, 0.5
    base, grid = MODES.model(FLOW), Grid.uniform(n)
    policy = affine_policy(base, grid, seed=4)
    method = AdjointMatching(
        reward=Ring(), beta=beta, sampler=MemorylessFlow(1.0), grid=grid, noiseless_last=noiseless, clip=clip
    )
    batch = method.collect(policy, requests(16), {}, Turn(0, 0))
    chunks = list(method.losses(policy, batch, {}))
    source = Turn(0, 0).noise(requests(16).ids)
    noise = [source.normal((2,), F64) for _ in range(n + 1)]
    wanted = paper_flow_loss(policy.view(), base, n, beta, noise, noiseless, clip)
    # ours: the mean over n steps and 2 dimensions of terms that carry a factor h
    close(sum(c.loss for c in chunks).detach() * (n * 2) * n, wanted, 1e-10)
    if clip is not None:
        shares = torch.stack([c.metrics["clipped"] for c in chunks])
        assert 0 < float(shares.mean()) < 1


def test_it_is_the_published_diffusion_form_with_the_costate_after_the_step() -> None:
    """Algorithm 2 on the schedule of Stable Diffusion: coefficients of d eps and of the costate in alpha_bar."""
    process = VPTable.stable_diffusion()
    grid = Grid.leading(8, process)
    base = MODES.model(process, "eps")
    policy = affine_policy(base, grid, seed=4)
    method = AdjointMatching(reward=Ring(), beta=0.5, sampler=GDDIM(1.0), grid=grid)
    batch = method.collect(policy, requests(4), {}, Turn(0, 0))
    noise = Turn(0, 0).noise(requests(4).ids)
    path = rollout(policy.view(), GDDIM(1.0), grid, process.prior(noise.normal((2,), F64)), noise=noise)
    end = path.x0.detach().requires_grad_(True)
    a = -torch.autograd.grad(Ring()(end).sum(), end)[0] / 0.5
    terms = []
    for tr in reversed(path.transitions):
        now, after = (float(process(v).alpha) ** 2 for v in (tr.step.t, tr.step.s))
        x = tr.x_t.detach().requires_grad_(True)
        if tr.stochastic:
            c_1 = math.sqrt(after / (now * (1 - after)) * (1 - now / after))
            c_2 = math.sqrt((1 - after) / (1 - now) * (1 - now / after))
            gap = policy.view()(x, tr.step.t) - base(x, tr.step.t)
            terms.insert(0, (c_1 * gap - c_2 * a).square().mean().detach())
        eps = base(x, tr.step.t)
        x0 = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
        spread = (1 - after) / (1 - now) * (1 - now / after)
        mean = math.sqrt(after) * x0 + math.sqrt(1 - after - spread) * eps
        a = torch.autograd.grad(mean, x, a)[0]
    found = torch.stack([c.loss.detach() for c in method.losses(policy, batch, {})])
    assert len(found) == 7
    close(found * len(found), torch.stack(terms), 1e-9)


def test_the_subset_is_the_papers_and_the_same_for_a_key() -> None:
    choice = Subset(early=10, late=10)
    steps = choice(40, Turn(3, 5))
    assert steps[10:] == list(range(30, 40)) and len(set(steps[:10])) == 10 and steps[:10] == sorted(steps[:10])
    assert max(steps[:10]) < 30
    assert steps == choice(40, Turn(3, 5)) and steps != choice(40, Turn(3, 6))
    seen = {i for index in range(60) for i in choice(40, Turn(3, index))}
    assert seen == set(range(40))  # a step is missed with chance (2/3)^60 = 3e-11
    assert Subset(2, 10)(6, Turn(0, 0)) == list(range(6))


def test_a_subset_has_the_targets_of_all_steps_at_its_own() -> None:
    base, grid = MODES.model(FLOW), Grid.uniform(8)
    policy = affine_policy(base, grid, seed=4)
    parts = {"reward": Ring(), "sampler": MemorylessFlow(), "grid": grid}
    every = AdjointMatching(**parts).collect(policy, requests(3), {}, Turn(0, 2)).targets
    some = AdjointMatching(**parts, steps=Subset(2, 2)).collect(policy, requests(3), {}, Turn(0, 2)).targets
    by_time = {float(t.t): t for t in every}
    assert [float(t.t) for t in some][-2:] == [0.25, 0.125] and len(some) == 4
    for target in some:
        close(target.control, by_time[float(target.t)].control, 1e-12)


def test_parts_that_do_not_fit_are_refused() -> None:
    for sampler in (Euler(), Heun(), DPMSolverPP2M(), Mixed()):
        with pytest.raises(GirsanovError, match=f"needs a stochastic sampler of one stage .* {type(sampler).__name__}"):
            AdjointMatching(reward=REWARD, sampler=sampler)
    with pytest.raises(GirsanovError, match=r"use GDDIM\(eta=1.0\), or any_noise=True"):
        AdjointMatching(reward=REWARD, sampler=GDDIM(0.5))
    AdjointMatching(reward=REWARD, sampler=GDDIM(0.5), any_noise=True)
    with pytest.raises(GirsanovError, match="take more steps"):
        policy = affine_policy(LAW.model(FLOW), Grid.uniform(1))
        AdjointMatching(reward=REWARD, grid=Grid.uniform(1)).collect(policy, requests(2), {}, Turn(0, 0))


def test_recorded_noise_runs_out_with_a_sentence() -> None:
    source = Recorded([torch.zeros(1)])
    source(torch.zeros(1))
    with pytest.raises(GirsanovError, match="the recorded noise is used up"):
        source(torch.zeros(1))


def law() -> None:
    """The flow form, and the lean fixed point after a few population steps (both notice signs and indices)."""
    test_it_is_the_published_flow_form(noiseless=False, clip=1.6)
    method, policy = trained("gddim-flow", REWARD, 1.2, n=25)
    start = prior_moments(policy.model)
    reference = affine_kernels(policy.view("reference"), method.sampler, method.grid)
    found = chain_law(affine_kernels(policy.view(), method.sampler, method.grid), *start)
    close(found.mean, lean_adjoint_limit(reference, start, REWARD, 1.2).law.mean, 1e-4)


MUTATIONS = [
    Mutation(matching.AdjointMatching, "collect", "costate = -gradient", "costate = gradient", law),
    Mutation(matching.AdjointMatching, "target", "-(std**2) / gain", "-(std**2) / (2 * gain)", law),
    Mutation(matching.AdjointMatching, "target", "(gain / std) ** 2", "(gain / std)", law),
]


@mutants(MUTATIONS)
def test_defects_are_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)


def test_pairing_with_the_costate_before_the_step_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = matching.AdjointMatching.target

    def early(self, policy, tr, v, gain, costate, cond):
        x, mean, _, _ = self.linearise(policy, tr, cond, True)
        return right(self, policy, tr, v, gain, torch.autograd.grad(mean, x, costate)[0], cond)

    monkeypatch.setattr(matching.AdjointMatching, "target", early)
    with pytest.raises(AssertionError):
        law()
