"""Fixed points on a grid: each recursion against the definition of its method, and section 10 of the notes."""

import math

import pytest
import torch

from girsanov.grids import Grid
from girsanov.noise import Noise
from girsanov.problems import (
    Gaussian,
    LinearReward,
    QuadraticReward,
    affine_kernels,
    chain_law,
    end_law,
    gaussian_kl,
    lean_adjoint_limit,
    path_kl,
    path_kl_limit,
    per_step_kl_limit,
    tilt,
    tuned_model,
)
from girsanov.problems.moments import AffineKernel, prior_moments
from girsanov.processes import VP, RectifiedFlow
from girsanov.rollout import replay, rollout
from girsanov.samplers import GDDIM, DanceSDE, EulerMaruyama, FlowSDE, Heun, MemorylessFlow

F64 = torch.float64
PLANE = Gaussian([0.8, -0.3], [[1.2, 0.4], [0.4, 0.6]])
REWARD = QuadraticReward([[1.5, 0.3], [0.3, 0.4]], [0.6, -0.5])
BETA = 0.7
SAMPLERS = {
    "gddim-1": GDDIM(1.0),
    "gddim-.7": GDDIM(0.7),
    "memoryless-flow": MemorylessFlow(),
    "flow-sde": FlowSDE(),
    "dance-sde": DanceSDE(),
}


def chain(sampler: object, n: int = 5) -> tuple[list[AffineKernel], tuple[torch.Tensor, torch.Tensor]]:
    model = PLANE.model(RectifiedFlow())
    return affine_kernels(model, sampler, Grid.uniform(n)), prior_moments(model)


def parameters(kernels: list[AffineKernel], live: bool = True) -> list[torch.Tensor]:
    return [p.clone().requires_grad_(live) for k in kernels for p in (k.F, k.c)]


def objective(
    parts: list[torch.Tensor], reference: list[AffineKernel], start: tuple, frozen: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """``E r`` and path KL as functions of every step's (F, c); ``frozen`` fixes the states of the KL terms."""
    (mean, cov), kl = start, torch.zeros((), dtype=F64)
    for i, old in enumerate(reference):
        F, c = parts[2 * i], parts[2 * i + 1]
        m, v = (mean.detach(), cov.detach()) if frozen else (mean, cov)
        D, e = F - old.F, c - old.c
        if old.std > 0:
            kl = kl + ((D @ m + e).square().sum() + (D @ v @ D.mT).trace()) / (2 * old.std**2)
        mean, cov = F @ mean + c, F @ cov @ F.mT + old.std**2 * torch.eye(2, dtype=F64)
    return REWARD.expected(mean, cov), kl


def gradients(limit_kernels: list[AffineKernel], reference: list[AffineKernel], start: tuple, frozen: bool) -> float:
    parts = parameters(limit_kernels)
    r, kl = objective(parts, reference, start, frozen)
    grads = torch.autograd.grad(r - BETA * kl, parts)
    noisy = [g for i, g in enumerate(grads) if reference[i // 2].std > 0]
    return max(float(g.abs().max()) for g in noisy)


@pytest.mark.parametrize("name", SAMPLERS)
def test_path_kl_limit_is_the_stationary_point_of_its_objective(name: str) -> None:
    """Autograd of E r - beta KL(path) in every step's map vanishes at the limit, and not at the reference."""
    kernels, start = chain(SAMPLERS[name])
    limit = path_kl_limit(kernels, start, REWARD, BETA)
    assert gradients(limit.kernels, kernels, start, frozen=False) < 1e-12
    assert gradients(kernels, kernels, start, frozen=False) > 1e-2
    r, kl = objective(parameters(limit.kernels, False), kernels, start, False)
    assert abs(float(kl - path_kl(limit.kernels, kernels, start))) < 1e-12
    best = float(r - BETA * kl)
    generator = torch.Generator().manual_seed(7)
    for _ in range(20):  # a maximum, not only a stationary point
        moved = [
            p + 0.05 * torch.randn(p.shape, dtype=F64, generator=generator) for p in parameters(limit.kernels, False)
        ]
        moved = [
            old if kernels[i // 2].std == 0 else p
            for i, (p, old) in enumerate(zip(moved, parameters(limit.kernels, False), strict=True))
        ]
        r, kl = objective(moved, kernels, start, False)
        assert float(r - BETA * kl) < best


@pytest.mark.parametrize("name", SAMPLERS)
def test_per_step_limit_is_where_the_policy_gradient_vanishes(name: str) -> None:
    """E[A grad log pi] is the gradient of E r; the KL gradient of a step does not flow into earlier steps."""
    kernels, start = chain(SAMPLERS[name])
    limit = per_step_kl_limit(kernels, start, REWARD, BETA)
    assert gradients(limit.kernels, kernels, start, frozen=True) < 1e-12
    other = path_kl_limit(kernels, start, REWARD, BETA)
    assert gradients(other.kernels, kernels, start, frozen=True) > 1e-3
    assert float((limit.law.mean - other.law.mean).abs().max()) > 1e-3
    assert float(path_kl(limit.kernels, kernels, start)) < float(path_kl(other.kernels, kernels, start))
    linear = LinearReward(REWARD.b)
    both = [f(kernels, start, linear, BETA).law for f in (per_step_kl_limit, path_kl_limit)]
    torch.testing.assert_close(both[0].mean, both[1].mean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_lean_adjoint_limit_answers_its_regression(name: str) -> None:
    """delta(x) = (std^2 / beta) Pi^T (b - A E[x_end | x]) under the tuned chain; the law is that of path KL."""
    kernels, start = chain(SAMPLERS[name])
    limit = lean_adjoint_limit(kernels, start, REWARD, BETA)
    x = torch.randn(2, dtype=F64, generator=torch.Generator().manual_seed(8))
    for i, (new, old) in enumerate(zip(limit.kernels, kernels, strict=True)):
        Pi, end = torch.eye(2, dtype=F64), new.F @ x + new.c
        for later_new, later_old in zip(limit.kernels[i + 1 :], kernels[i + 1 :], strict=True):
            Pi, end = later_old.F @ Pi, later_new.F @ end + later_new.c
        target = old.std**2 / BETA * Pi.mT @ (REWARD.b - REWARD.A @ end)
        torch.testing.assert_close((new.F - old.F) @ x + new.c - old.c, target, rtol=1e-11, atol=1e-13)
    other = path_kl_limit(kernels, start, REWARD, BETA)
    torch.testing.assert_close(limit.law.mean, other.law.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(limit.law.cov, other.law.cov, rtol=1e-12, atol=1e-12)


def test_the_population_iteration_of_the_notes_ends_at_the_limit() -> None:
    """T9: damped iteration ``new d_k = -sigma_k Pi_k a Kx_k`` (notes 5d), with the costate after the step, N = 40."""
    law, a, b = Gaussian(0.8, 1.69), 1.5 / BETA, 0.6 / BETA
    model, N = law.model(RectifiedFlow()), 40
    kernels, start = affine_kernels(model, MemorylessFlow(), Grid.uniform(N)), prior_moments(model)
    F, c, std = ([float(v) for v in vs] for vs in zip(*[(k.F, k.c, k.std) for k in kernels], strict=True))
    h, sigma = 1 / N, [s * math.sqrt(N) for s in std]
    Pi = [math.prod(F[k + 1 :]) for k in range(N)]
    c_u, d_u, moves = [0.0] * N, [0.0] * N, []
    for _ in range(60):
        new_c, new_d, Kx, Kc = [0.0] * N, [0.0] * N, 1.0, 0.0
        for k in reversed(range(N)):
            Kx, Kc = Kx * (F[k] + h * sigma[k] * d_u[k]), Kx * (c[k] + h * sigma[k] * c_u[k]) + Kc
            new_d[k], new_c[k] = -sigma[k] * Pi[k] * a * Kx, sigma[k] * Pi[k] * (b - a * Kc)
        moves.append(max(abs(u - v) for u, v in zip(new_d, d_u, strict=True)))
        c_u, d_u = (
            [(0.5 * (u + v)) for u, v in zip(c_u, new_c, strict=True)],
            [(0.5 * (u + v)) for u, v in zip(d_u, new_d, strict=True)],
        )
    assert moves[-1] < 1e-14
    limit = lean_adjoint_limit(kernels, start, QuadraticReward(1.5, 0.6), BETA)
    for k in range(N):
        assert abs(float(limit.kernels[k].F) - F[k] - h * sigma[k] * d_u[k]) < 1e-12
        assert abs(float(limit.kernels[k].c) - c[k] - h * sigma[k] * c_u[k]) < 1e-12
    r = QuadraticReward(1.5, 0.6)
    assert float(r.expected(limit.law.mean, limit.law.cov)) > float(
        r.expected(*[getattr(chain_law(kernels, *start), n) for n in ("mean", "cov")])
    )


TABLE = [
    # law, reward, beta, then per N: error of mean and variance in % for the SDE and for the Heun ODE of its field
    (
        Gaussian(0.8, 1.69),
        QuadraticReward(1.5, 0.6),
        0.7,
        {40: (0.6, 7.2, -1.7, 3.9), 100: (0.3, 2.9, -0.7, 1.5), 400: (0.1, 0.7, -0.2, 0.4)},
    ),
    (
        Gaussian(0.8, 1.69),
        LinearReward(0.6),
        0.7,
        {40: (6.8, 7.8, 1.0, -0.0), 100: (2.8, 3.2, 0.4, 0.0), 400: (0.7, 0.8, 0.1, 0.0)},
    ),
    (
        Gaussian(0.0, 1.0),
        QuadraticReward(0.5, 0.6),
        1.0,
        {40: (4.9, 6.5, -0.0, 0.1), 100: (2.0, 2.7, 0.0, 0.0), 400: (0.5, 0.7, 0.0, 0.0)},
    ),
]


@pytest.mark.parametrize("row", range(3))
def test_the_discretisation_table(row: int) -> None:
    """Section 10: relative % error to the tilted law, 36 printed numbers (one is off by .052); then Richardson."""
    law, reward, beta, numbers = TABLE[row]
    target, model, moments = tilt(law, reward, beta), law.model(RectifiedFlow()), {}
    for n in (40, 50, 100, 400):
        grid = Grid.uniform(n)
        kernels, start = affine_kernels(model, MemorylessFlow(), grid), prior_moments(model)
        limit = lean_adjoint_limit(kernels, start, reward, beta)
        ode = end_law(tuned_model(model, grid, kernels, limit.kernels), Heun(), grid)
        moments[n] = [float(v) for v in (limit.law.mean, limit.law.cov, ode.mean, ode.cov)]
        exact = [float(v) for v in (target.mean, target.cov)] * 2
        if n in numbers:
            for seen, true, printed in zip(moments[n], exact, numbers[n], strict=True):
                assert abs(100 * (seen / true - 1) - printed) < 0.053
        assert (
            float(gaussian_kl(limit.law, chain_law(kernels, *start)))
            <= float(path_kl(limit.kernels, kernels, start)) + 1e-12
        )
    for i, true in enumerate(exact):
        coarse, fine = moments[50][i] / true - 1, moments[100][i] / true - 1
        assert abs(2 * fine - coarse) < 0.0025  # Richardson 50 -> 100
        if abs(fine) > 0.002:
            assert 0.8 < math.log2(coarse / fine) < 1.2  # order 1 of limit -> law


@pytest.mark.parametrize("sampler", [GDDIM(1.0), MemorylessFlow(), EulerMaruyama(1.0)], ids=lambda s: type(s).__name__)
def test_a_linear_reward_tilts_the_discrete_chain(sampler: object) -> None:
    """The trained chain ends in the tilt of the *discrete* base chain's end law, to 5e-4 of a std; path KL = end KL.

    To rounding for gDDIM, whose first step from t = 1 forgets the start; to what the other two remember of it.
    """
    kernels, start = chain(sampler, 40)
    reward = LinearReward([0.6, -0.5])
    limit, base = path_kl_limit(kernels, start, reward, BETA), chain_law(kernels, *start)
    expected, tolerance = tilt(base, reward, BETA), 1e-12 if isinstance(sampler, GDDIM) else 5e-4
    assert float(((limit.law.mean - expected.mean) / base.cov.diagonal().sqrt()).abs().max()) < tolerance
    torch.testing.assert_close(limit.law.cov, base.cov, rtol=1e-12, atol=0)
    both = float(path_kl(limit.kernels, kernels, start)), float(gaussian_kl(limit.law, base))
    assert abs(both[0] / both[1] - 1) < max(tolerance, 1e-3)


@pytest.mark.parametrize("process", [RectifiedFlow(), VP()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("eta", [0.7, 1.0, 1.5])
def test_path_kl_is_the_monte_carlo_girsanov_weight(eta: float, process: object) -> None:
    """T11: E sum log_ratio (and E sum KL) of the tuned chain's own samples is its closed-form path KL.

    Seed 9, n = 20000 paths of 12 steps in two dimensions, |z| < 5; the two estimators also against each other.
    """
    start_t = 1.0 if isinstance(process, RectifiedFlow) else 0.98
    grid, n, sampler = Grid.uniform(12, start=start_t, end=0.02), 20_000, GDDIM(eta)
    base = PLANE.model(process)
    tilted = tilt(PLANE, REWARD, BETA).model(process)
    reference, tuned = affine_kernels(base, sampler, grid), affine_kernels(tilted, sampler, grid)
    expected = float(path_kl(tuned, reference, prior_moments(base)))
    noise = Noise(9, 0, torch.arange(n))
    path = rollout(tilted, sampler, grid, noise.normal((2,), F64), noise=noise)
    weight, kl = torch.zeros(n, dtype=F64), torch.zeros(n, dtype=F64)
    for tr, old in replay(base, sampler, path):
        weight -= old.log_ratio(tr.mean, tr.x_s)
        kl += old.kl(tr.mean)
    for estimate in (weight, kl):
        assert abs(float(estimate.mean()) - expected) < 5 * float(estimate.std()) / math.sqrt(n)


def test_the_path_kl_of_published_code() -> None:
    """Notes 1c: ((1 + eta^2) / (2 eta))^2 |Delta s|^2 log(abar_s / abar_t) / 2 is our KL of a step to first order.

    VP from a fine grid, sum over steps of E|Delta s|^2: the ratio goes to 1 as 1/N.
    """
    process, eta, target = VP(), 0.7, tilt(PLANE, REWARD, BETA)
    base, tilted = PLANE.model(process), target.model(process)
    points, ratios = torch.cat([torch.zeros(1, 2, dtype=F64), torch.eye(2, dtype=F64)]), []
    for n in (100, 200):
        grid = Grid.uniform(n, start=0.9, end=0.05)
        reference, tuned = (affine_kernels(m, GDDIM(eta), grid) for m in (base, tilted))
        published, (mean, cov) = 0.0, prior_moments(base)
        for step, new in zip(grid, tuned, strict=True):
            c = process(step.t)
            D = target.score(points, c) - PLANE.score(points, c)
            slope, shift = (D[1:] - D[0]).mT, D[0]
            square = float((slope @ mean + shift).square().sum() + (slope @ cov @ slope.mT).trace())
            log_ratio = 2 * float(torch.log(process(step.s).alpha / process(step.t).alpha))
            published += 0.5 * ((1 + eta**2) / (2 * eta)) ** 2 * square * log_ratio
            mean, cov = new.push(mean, cov)
        ratios.append(published / float(path_kl(tuned, reference, prior_moments(base))) - 1)
    assert abs(ratios[1]) < 0.1 and 1.7 < ratios[0] / ratios[1] < 2.3
