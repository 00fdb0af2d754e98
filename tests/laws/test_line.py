"""Numerics on the line (T12): against closed forms on Gaussian data, a Fokker-Planck solver, the tilted mixture."""

import numpy as np
import pytest
import torch
from scipy.linalg import solve_banded

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.problems import (
    Gaussian,
    LinearReward,
    Mixture,
    QuadraticReward,
    affine_kernels,
    chain_law,
    end_law,
    path_kl,
    path_kl_limit,
    tilt,
    tilt_kl,
)
from girsanov.problems.line import (
    line_kernels,
    line_path_kl,
    line_path_kl_limit,
    start_nodes,
    transport,
    uniform,
)
from girsanov.problems.moments import prior_moments
from girsanov.processes import VP, RectifiedFlow
from girsanov.samplers import GDDIM, Euler, Heun, MemorylessFlow
from girsanov.theory.line import Line, geometric_grid

MIXTURE = Mixture([0.7, 0.3], [[-1.5], [1.5]], [[[0.25]], [[0.25]]])
LINE = uniform(-8, 8, 1601)


@pytest.mark.parametrize("sampler", [GDDIM(1.0), GDDIM(0.6), MemorylessFlow(), Heun()], ids=repr)
def test_it_is_the_recursion_on_gaussian_data(sampler: object) -> None:
    law, reward, beta, line = Gaussian(0.8, 0.9), QuadraticReward(1.5, 0.6), 0.7, uniform(-9, 9, 1401)
    model, grid = law.model(RectifiedFlow()), Grid.uniform(12)
    steps, start = line_kernels(model, sampler, grid), start_nodes(line)
    end, exact = transport(steps, start, line), end_law(model, sampler, grid)
    assert abs(end.mean - float(exact.mean)) < 1e-7 and abs(end.variance - float(exact.cov)) < 1e-6
    if sampler.stochastic:
        kernels = affine_kernels(model, sampler, grid)
        limit = path_kl_limit(kernels, prior_moments(model), reward, beta)
        tuned, _ = line_path_kl_limit(steps, lambda x: 0.6 * x - 0.75 * x**2, beta, line)
        end = transport(tuned, start, line)
        assert abs(end.mean - float(limit.law.mean)) < 1e-7 and abs(end.variance - float(limit.law.cov)) < 1e-7
        expected = float(path_kl(limit.kernels, kernels, prior_moments(model)))
        assert abs(line_path_kl(tuned, steps, start, line) - expected) < 1e-7


def fokker_planck(eta: float, process: VP, n: int, steps: int) -> tuple[float, float]:
    """Mean and variance of the eta-sampler in continuous time from N(0, 1): Crank-Nicolson on the density, t = 1 -> 0.

    Noise rate q = eta^2 g^2: ``dp/du = -d/dx(drift p) + (q / 2) d^2 p / dx^2`` with u = 1 - t, drift = -(v - q s / 2).
    """
    x = np.linspace(-7, 7, n)
    dx, points = x[1] - x[0], torch.linspace(-7, 7, n, dtype=torch.float64).unsqueeze(1)
    p = np.exp(-0.5 * x**2)
    p /= p.sum()
    du = 1.0 / steps
    for k in range(steps):
        t = torch.tensor(1 - (k + 0.5) * du, dtype=torch.float64)
        c, g2 = process(t), float(process.g2(t))
        score = MIXTURE.score(points, c).flatten().numpy()
        v = float(process.f(t)) * x - 0.5 * g2 * score
        drift, q = -(v - 0.5 * eta**2 * g2 * score), eta**2 * g2
        face = 0.5 * (drift[1:] + drift[:-1]) / (2 * dx)
        diffusion = q / (2 * dx**2)
        # Flux form, so that mass is kept: flux = drift (p_i + p_{i+1}) / 2 - (q / 2) (p_{i+1} - p_i) / dx.
        up, low, diag = np.zeros(n), np.zeros(n), np.zeros(n)
        low[:-1], up[1:] = face + diffusion, -face + diffusion
        diag[:-1] -= face + diffusion
        diag[1:] += face - diffusion
        applied = diag * p
        applied[1:] += low[:-1] * p[:-1]
        applied[:-1] += up[1:] * p[1:]
        p = solve_banded(
            (1, 1), np.stack([-0.5 * du * up, 1 - 0.5 * du * diag, -0.5 * du * low]), p + 0.5 * du * applied
        )
    mean = float(p @ x)
    return mean, float(p @ (x - mean) ** 2)


def test_sde_against_fokker_planck_and_the_gap_to_the_ode() -> None:
    """VP that keeps alpha(1) = .36, so the start leaves a gap: r = -x^2 of SDE_eta minus ODE, two ways, to 1e-4.

    Left: gDDIM backwards, 100 to 400 steps, Richardson; the ODE: quantile integration by Heun. Right: Crank-Nicolson.
    """
    process = VP(0.1, 4.0)
    model = MIXTURE.model(process)

    def sde(eta: float) -> float:
        chains = [Line(model, GDDIM(eta), geometric_grid(process, n), 5.0) for n in (100, 200, 400)]
        a, b, c = (chain.expect(lambda x: x[:, 0] ** 2) for chain in chains)
        return (a - 6 * b + 8 * c) / 3  # removes the errors of order h and h^2

    def solver(eta: float) -> float:
        first, second = (fokker_planck(eta, process, n, n // 2) for n in (1000, 2000))
        return (4 * (second[0] ** 2 + second[1]) - (first[0] ** 2 + first[1])) / 3

    heun = [transport(line_kernels(model, Heun(), Grid.uniform(n)), start_nodes(LINE), LINE) for n in (100, 200)]
    ode = (4 * heun[1].expect(np.square) - heun[0].expect(np.square)) / 3
    assert abs(ode - solver(0.0)) < 1e-4
    gaps = []
    for eta in (0.5, 1.0):
        seen = sde(eta)
        assert abs(seen - solver(eta)) < 1e-4
        gaps.append(ode - seen)
    data = float(MIXTURE.mean**2 + MIXTURE.cov)
    assert abs(gaps[1]) > abs(gaps[0]) > 1e-3 and abs(ode - data) > 1e-2  # more noise forgets more of the wrong start


def test_densities_forwards_and_expectations_backwards_agree() -> None:
    """Two quadratures that share nothing but the kernels: E x^2 and E sin x of a mixture's chain, to 1e-7."""
    for sampler in (GDDIM(0.6), GDDIM(1.0), MemorylessFlow()):
        model, grid = MIXTURE.model(RectifiedFlow()), Grid.uniform(20)
        end, line = (
            transport(line_kernels(model, sampler, grid), start_nodes(LINE), LINE),
            Line(model, sampler, grid, 6.0),
        )
        assert abs(end.expect(np.square) - line.expect(lambda x: x[:, 0] ** 2)) < 1e-6
        assert abs(end.expect(np.sin) - line.expect(lambda x: x[:, 0].sin())) < 1e-7


@pytest.mark.parametrize("sampler", [GDDIM(1.0), MemorylessFlow()], ids=lambda s: type(s).__name__)
def test_the_mixture_limit_tends_to_the_tilted_mixture(sampler: object) -> None:
    """eta = 1, r = x, beta = 1: first order in the step for mean, variance and weight; Richardson within 1.5 %."""
    reward = LinearReward(1.0)
    target, line = tilt(MIXTURE, reward, 1.0), uniform(-8, 8, 1601)
    exact = np.array([float(target.mean), float(target.cov), float(target.weights[1])])
    model, seen = MIXTURE.model(RectifiedFlow()), []
    for n in (15, 30, 60):
        steps = line_kernels(model, sampler, Grid.uniform(n))
        tuned, _ = line_path_kl_limit(steps, lambda x: x, 1.0, line)
        end = transport(tuned, start_nodes(line), line)
        seen.append(np.array([end.mean, end.variance, end.mass(0.0)]))
    kl = line_path_kl(tuned, steps, start_nodes(line), line)
    assert abs(kl / float(tilt_kl(MIXTURE, reward, 1.0)) - 1) < 0.02
    errors = [np.abs(s / exact - 1) for s in seen]
    assert (errors[2][:2] < errors[1][:2]).all() and (errors[1][:2] < errors[0][:2]).all()
    order = np.log2(errors[1][1] / errors[2][1])
    assert 0.7 < order < 1.3
    assert (np.abs((2 * seen[2] - seen[1]) / exact - 1) < 0.015).all()


def test_it_is_a_maximum() -> None:
    """Any bump of the optimal means lowers E r - beta KL on the mixture (six of them)."""
    steps, line = line_kernels(MIXTURE.model(RectifiedFlow()), GDDIM(1.0), Grid.uniform(8)), uniform(-7, 7, 1001)
    start, beta = start_nodes(line), 0.8
    tuned, value = line_path_kl_limit(steps, lambda x: 0.3 * np.sin(2 * x) + 0.5 * x, beta, line)

    def objective(chain: list) -> float:
        end = transport(chain, start, line)
        return end.expect(lambda x: 0.3 * np.sin(2 * x) + 0.5 * x) - beta * line_path_kl(chain, steps, start, line)

    best = objective(tuned)
    assert abs(best - start.expect(value)) < 1e-5
    for k in (0, 3, 6):
        for size in (-0.05, 0.05):
            bumped = list(tuned)
            old = tuned[k]
            bumped[k] = type(old)(lambda x, old=old, size=size: old.mean(x) + size * np.exp(-(x**2)), old.std)
            assert objective(bumped) < best - 1e-6


def test_masses_and_refusals() -> None:
    nodes = start_nodes(LINE)
    assert abs(nodes.mass(-1.0, 1.0) - 0.6826894921370859) < 1e-5 and abs(nodes.mass() - 1) < 1e-12
    steps = line_kernels(MIXTURE.model(RectifiedFlow()), GDDIM(1.0), Grid.uniform(40))
    with pytest.raises(GirsanovError, match="more points"):
        coarse = uniform(-8, 8, 101)
        transport(steps, start_nodes(coarse), coarse)
    with pytest.raises(GirsanovError, match="one dimension"):
        line_kernels(Gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]).model(RectifiedFlow()), Euler(), Grid.uniform(4))
    assert isinstance(chain_law([], torch.zeros(1), torch.eye(1)), Gaussian)
