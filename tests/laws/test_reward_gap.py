"""The reward gap as code: closed forms of control.md 3d A to D, the quadrature on the line, and the bound."""

import math

import pytest
import torch

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.problems import (
    Gaussian,
    LinearReward,
    Mixture,
    OptimalControl,
    QuadraticReward,
    affine_kernels,
    chain_law,
    deployment_factor,
    path_kl_limit,
    tilt,
)
from girsanov.problems.moments import prior_moments
from girsanov.processes import VE, VP, Cosine, Process, RectifiedFlow, VPTable
from girsanov.samplers import GDDIM, DPMSolverPP2M, FlowSDE
from girsanov.theory import (
    Line,
    chain_memory,
    gap_bound,
    geometric_grid,
    line_optimum,
    memory,
    require_dissipative,
    reward_gap,
    tuned_gap,
    untuned_law,
    wasserstein_bound,
)
from girsanov.theory.gap import reach, tuned_laws

F64 = torch.float64
DATA = Gaussian(0.8, 1.69)
TWICE = Mixture([0.4, 0.6], [[0.8], [0.8]], [[[1.69]], [[1.69]]])  # the same law, taken through the quadrature
TWO = Mixture([0.7, 0.3], [[-1.5], [1.5]], [[[0.25]], [[0.25]]])
SQUARE = QuadraticReward(2.0, 0.0)
PROCESSES = [VE(7.0), VP(0.1, 6.0), VPTable.stable_diffusion(), RectifiedFlow(), Cosine()]


def name(value: object) -> str:
    return type(value).__name__


@pytest.mark.parametrize(
    ("eta", "mean", "var"),
    [
        (0.0, 0.653926245, 1.633655553),
        (0.5, 0.704513331, 1.665923563),
        (1.0, 0.773328073, 1.688121481),
        (2.0, 0.7998376318, 1.689999930),
    ],
)
def test_the_untuned_end_law(eta: float, mean: float, var: float) -> None:
    """Printed numbers of control.md section 7 (T3), and the VE and VP formulas of 3d(A)."""
    law = untuned_law(VE(7.0), DATA, eta)
    assert abs(float(law.mean) - mean) < 1e-9 and abs(float(law.cov) - var) < 1e-9
    rho2 = float(VP().rho(1.0)) ** 2
    q = 1.69 / (1.69 + rho2)
    law = untuned_law(VP(), DATA, eta)
    assert abs(float(law.mean) - 0.8 * (1 - q ** ((1 + eta**2) / 2))) < 1e-12
    assert abs(float(law.cov) - 1.69 * (1 + q ** (eta**2) * (1 - 1.69) / (1.69 + rho2))) < 1e-12


@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0])
def test_the_published_gaps(eta: float) -> None:
    """r = -x^2, centred: s0^2 (q - q^(1 + eta^2)) on VE, -s0^2 (1 - s0^2)(1 - q^(eta^2)) / (s0^2 + rho^2) on VP."""
    centred = Gaussian(0.0, 1.69)
    q = 1.69 / (1.69 + 49.0)
    assert abs(reward_gap(VE(7.0), centred, SQUARE, eta).gap - 1.69 * (q - q ** (1 + eta**2))) < 1e-12
    rho2 = float(VP(0.1, 6.0).rho(1.0)) ** 2
    q = 1.69 / (1.69 + rho2)
    expected = 1.69 * 0.69 * (1 - q ** (eta**2)) / (1.69 + rho2)
    assert abs(reward_gap(VP(0.1, 6.0), centred, SQUARE, eta).gap - expected) < 1e-12
    assert abs(reward_gap(RectifiedFlow(), centred, SQUARE, eta).gap) < 1e-12


@pytest.mark.parametrize("process", [VE(7.0), RectifiedFlow()], ids=name)
@pytest.mark.parametrize("eta", [0.0, 0.5, 2.0])
def test_gddim_on_a_gaussian_converges_to_it(process: Process, eta: float) -> None:
    """First order: the error of mean and variance halves with the step (geometric steps)."""
    exact, errors = untuned_law(process, DATA, eta), []
    model = DATA.model(process)
    for n in (400, 800):
        kernels = affine_kernels(model, GDDIM(eta), geometric_grid(process, n, 1e-4, 1e4))
        law = chain_law(kernels, *prior_moments(model))
        errors.append([abs(float(law.mean - exact.mean)), abs(float(law.cov - exact.cov))])
    for coarse, fine in zip(*errors, strict=True):
        assert fine < 0.12 and (fine < 1e-9 or 1.6 < coarse / fine < 2.5)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0])
def test_the_moment_recursion(eta: float) -> None:
    """3d(C): v_s = a v_t + rho_s sqrt(1 - k^2) z in y, with a = 1 - rho_t (rho_t - rho_s k) / (s0^2 + rho_t^2)."""
    process, grid = VE(7.0), Grid.uniform(12, end=0.01)
    for kernel, step in zip(affine_kernels(DATA.model(process), GDDIM(eta), grid), grid, strict=True):
        t, s = 7.0 * float(step.t), 7.0 * float(step.s)
        k = (s / t) ** (eta**2)
        assert abs(float(kernel.F) - (1 - t * (t - s * k) / (1.69 + t**2))) < 1e-12
        assert abs(kernel.std - s * math.sqrt(1 - k**2)) < 1e-12
        if eta == 1.0:
            assert abs(float(kernel.F) - (1.69 + s**2) / (1.69 + t**2)) < 1e-12


@pytest.mark.parametrize("process", PROCESSES, ids=name)
@pytest.mark.parametrize("eta", [0.5, 2.0])
def test_quadrature_equals_moments(process: Process, eta: float) -> None:
    """The mixture code on a law that is Gaussian: on a grid to 1e-10, in continuous time to the 5e-5 of Richardson."""
    grid = Grid.uniform(20)
    exact, line = reward_gap(process, DATA, SQUARE, eta, grid), reward_gap(process, TWICE, SQUARE, eta, grid)
    assert abs(exact.ode - line.ode) < 1e-10 and abs(exact.sde - line.sde) < 1e-10


@pytest.mark.parametrize("process", [VE(7.0), VP(0.1, 6.0)], ids=name)
def test_continuous_quadrature(process: Process) -> None:
    exact, line = reward_gap(process, DATA, SQUARE, 0.7), reward_gap(process, TWICE, SQUARE, 0.7)
    assert abs(exact.ode - line.ode) < 1e-10 and abs(exact.sde - line.sde) < 5e-5


def test_a_mixture_against_sampling() -> None:
    """Two modes, r = sin 3x + x / 2, VE: 4e4 draws (seed 0), 4 standard errors; and continuous time is the limit."""
    from girsanov.rollout import rollout

    def reward(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(3 * x[:, 0]) + x[:, 0] / 2

    process, grid = VE(5.0), Grid.uniform(15)
    gap = reward_gap(process, TWO, reward, 1.5, grid)
    g = torch.Generator().manual_seed(0)

    def noise(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, dtype=F64, generator=g)

    for eta, expected in ((0.0, gap.ode), (1.5, gap.sde)):
        start = process.prior(noise(torch.empty(40000, 1)))
        got = reward(rollout(TWO.model(process), GDDIM(eta), grid, start, noise=noise, keep=()).x0)
        assert abs(float(got.mean()) - expected) < 4 * float(got.std()) / 200
    fine = reward_gap(process, TWO, reward, 1.5, geometric_grid(process, 400))
    limit = reward_gap(process, TWO, reward, 1.5)
    assert abs(fine.ode - limit.ode) < 0.02 and abs(fine.sde - limit.sde) < 0.05


@pytest.mark.parametrize("process", [RectifiedFlow(), VE(7.0)], ids=name)
@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0])
def test_the_tuned_chain_on_the_line(process: Process, eta: float) -> None:
    """Dynamic programming by quadrature equals the linear-quadratic recursion, mean and variance to 1e-9."""
    reward, grid = QuadraticReward(1.5, 0.6), Grid.uniform(20)
    model = DATA.model(process)
    limit = path_kl_limit(affine_kernels(model, GDDIM(eta), grid), prior_moments(model), reward, 0.7)
    line = line_optimum(Line(TWICE.model(process), GDDIM(eta), grid, reach(DATA), points=401), reward, 0.7).line
    mean = line.expect(lambda x: x[:, 0])
    assert abs(mean - float(limit.law.mean)) < 1e-9
    assert abs(line.expect(lambda x: x[:, 0] ** 2) - mean**2 - float(limit.law.cov)) < 1e-9


def test_the_tuned_gap() -> None:
    """3d(B), T to infinity: -(a s0^2 / 2) [(1 + A)^(-2 / (1 + eta^2)) - 1 / (1 + A)], exact on the flow."""
    data, a, beta = Gaussian(0.0, 1.69), 1.5, 0.7
    A = a * 1.69 / beta
    for eta in (0.5, 2.0):
        control = OptimalControl(data, QuadraticReward(a, 0.0), beta, RectifiedFlow(), eta)
        expected = -(a * 1.69 / 2) * ((1 + A) ** (-2 / (1 + eta**2)) - 1 / (1 + A))
        assert abs(tuned_gap(control).gap - expected) < 1e-9
        assert abs(tuned_gap(control, factor=deployment_factor(eta, 0.0)).gap) < 1e-9


def test_memory_is_a_correlation() -> None:
    """The closed form against the chain: 400 steps of gDDIM from VE's own marginal, and pure noise forgets at once."""
    process = VE(5.0)
    for eta, scale in ((0.5, 1.0), (0.7, 1.3), (1.0, 0.6)):
        chain = chain_memory(process, GDDIM(eta), geometric_grid(process, 800), scale)
        assert abs(chain - memory(process, eta, 1.0, scale)) < 0.02
    assert memory(RectifiedFlow(), 0.1) == 0 and memory(RectifiedFlow(), 0.0) == 1
    assert abs(chain_memory(RectifiedFlow(), GDDIM(0.3), Grid.uniform(10))) < 1e-12
    assert abs(chain_memory(process, DPMSolverPP2M(), Grid.uniform(20)) - 1) < 1e-12
    assert 0.2 < chain_memory(RectifiedFlow(), FlowSDE(0.7), Grid.uniform(20)) < 1


@pytest.mark.parametrize("eta", [0.7, 1.0, 2.0])
def test_what_memory_costs(eta: float) -> None:
    """A linear reward moves the corrected sampler by 1 - kappa of its due and the raw one by (1 - kappa) / c."""
    data, process, full = Gaussian(0.0, 1.69), VE(7.0), 1.69 * 0.6 / 0.7
    control = OptimalControl(data, LinearReward(0.6), 0.7, process, eta)
    for deployed in (0.0, 0.5, 1.5):
        kappa = memory(process, eta, 1.0, 1.3) * memory(process, deployed, 1.0, 1.3)
        c = deployment_factor(eta, deployed)
        for factor, share in ((1.0, 1 / c), (c, 1.0)):
            law = tuned_laws(control, None, deployed, factor)[1]
            assert abs(float(law.mean) / full - share * (1 - kappa)) < 1e-9


@pytest.mark.parametrize("process", PROCESSES, ids=name)
@pytest.mark.parametrize("eta", [0.5, 2.0])
def test_the_bound_holds(process: Process, eta: float) -> None:
    """W2 of the output against the bound (Gaussian data: the bound is attained), and the gap under gap_bound."""
    for e in (0.0, eta):
        law, bound = untuned_law(process, DATA, e), wasserstein_bound(process, DATA, e)
        distance = math.hypot(float(law.mean - DATA.mean), float(law.cov.sqrt() - DATA.cov.sqrt()))
        assert distance <= bound.distance + 1e-12
        if e == 0:  # the flow is linear here, so nothing is lost
            assert abs(distance - bound.distance) < 1e-3 * distance + 1e-12
    for reward in (SQUARE, LinearReward(0.6), QuadraticReward(-0.3, 1.0)):
        assert abs(reward_gap(process, DATA, reward, eta).gap) <= gap_bound(process, DATA, reward, eta) + 1e-12
        if isinstance(process, VE) and eta == 2.0 and reward is SQUARE:
            assert abs(reward_gap(process, TWO, reward, eta).gap) <= gap_bound(process, TWO, reward, eta)


def test_dissipativity_is_checked() -> None:
    """It fails for plain VP at eta = 0 (L = 0 on unit data), and wherever two modes push paths apart."""
    for process, data, eta in [(VP(), Gaussian(0.0, 1.0), 0.0), (VP(), DATA, 0.0), (VE(7.0), TWO, 1.0)]:
        with pytest.raises(GirsanovError, match="not dissipative"):
            require_dissipative(process, data, eta)
    require_dissipative(VP(), Gaussian(0.0, 1.0), 1.0)
    require_dissipative(VE(7.0), DATA, 0.0)
    assert wasserstein_bound(VE(7.0), TWO, 0.0).factor > 1  # valid, and says that paths may spread


def test_what_is_refused() -> None:
    with pytest.raises(GirsanovError, match="eta > 0"):
        reward_gap(VP(), DATA, SQUARE, 0.0)
    plane = Mixture([0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]], [torch.eye(2).tolist()] * 2)
    with pytest.raises(GirsanovError, match="mixtures on the line"):
        reward_gap(VP(), plane, QuadraticReward(torch.eye(2), [0.0, 0.0]), 1.0)
    with pytest.raises(GirsanovError, match="mixtures on the line"):
        wasserstein_bound(VP(), plane, 1.0)
    with pytest.raises(GirsanovError, match="multistep"):
        Line(DATA.model(VP()), DPMSolverPP2M(), Grid.uniform(4), 5.0)
    with pytest.raises(GirsanovError, match="too long"):
        chain = Line(TWO.model(RectifiedFlow()), GDDIM(1.0), Grid.uniform(3), 6.0, points=201)
        line_optimum(chain, lambda x: torch.sin(9 * x[:, 0]), 0.05)
    assert tilt(DATA, SQUARE, 1.0).d == 1
