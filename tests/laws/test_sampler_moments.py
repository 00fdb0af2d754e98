"""End laws of samplers on Gaussian data, exact on any grid: the chain is affine, so nothing is sampled here."""

import math

import pytest
import torch

from girsanov.grids import Grid
from girsanov.problems import Gaussian, affine_kernels, chain_law, end_map
from girsanov.processes import VE, VP, Process, RectifiedFlow
from girsanov.samplers import CPS, GDDIM, PRECISE, DanceSDE, DPMSolverPP2M, Euler, EulerMaruyama, FlowSDE, Heun, Mixed
from girsanov.samplers.base import Sampler
from tests.laws.cases import EVERY_PROCESS, EVERY_SAMPLER, F64, SMOOTH, SOLID, fits, line_moments, normal, pairs

LINE = Gaussian([0.8], [[1.69]])  # the data of papers' test values: m = .8, s0 = 1.3


def noised(law: Gaussian, process: Process, t: torch.Tensor) -> Gaussian:
    """The exact marginal at t."""
    c = process(t)
    return law.noised(float(c.alpha), float(c.sigma))


def errors(law: Gaussian, process: Process, sampler: Sampler, grid: Grid) -> tuple[float, float]:
    """Distance of the end law's mean and covariance to the exact ones, started from the exact marginal."""
    start, end = noised(law, process, grid.ts[0]), noised(law, process, grid.ts[-1])
    got = end_map(law.model(process), sampler, grid).law(start.mean, start.cov)
    return float((got.mean - end.mean).norm()), float((got.cov - end.cov).norm())


# ---------------------------------------------------------------- T2: the recursion of gDDIM


def check_recursion() -> None:
    """T2: in ``x / alpha - m`` a gDDIM step has slope ``1 - rho_t (rho_t - rho_s k) / (s0^2 + rho_t^2)``, to 1e-12."""
    for name, process in EVERY_PROCESS.items():
        model = LINE.model(process)
        for eta in (0.0, 0.7, 1.0, 2.5):
            grid = Grid([0.95, 0.6, 0.55, 0.1, 0.0])
            for st, kernel in zip(grid, affine_kernels(model, GDDIM(eta), grid), strict=True):
                t, s = process(st.t), process(st.s)
                rho, rho_s = t.sigma / t.alpha, s.sigma / s.alpha
                k = (rho_s / rho) ** (eta**2)
                slope = 1 - rho * (rho - rho_s * k) / (1.69 + rho**2)
                offset = s.alpha * 0.8 - s.alpha * slope * 0.8
                assert float(kernel.F) == pytest.approx(float(s.alpha / t.alpha * slope), abs=1e-12), (name, eta)
                assert float(kernel.c) == pytest.approx(float(offset), abs=1e-12)
                assert kernel.std == pytest.approx(float(s.sigma * (1 - k**2).sqrt()) if eta else 0.0, abs=1e-12)


def test_recursion() -> None:
    check_recursion()


def check_telescope() -> None:
    """T2: at eta = 1 the slopes telescope: from any start the end's mean is the conditional one, on any grid, to 1e-12.

    d = 3, full covariance: ``E[x_0 | x_t] = m + alpha C (alpha^2 C + sigma^2)^-1 (x_t - alpha m)``.
    """
    for process in EVERY_PROCESS.values():
        for grid in (Grid([0.97, 0.0]), Grid([0.97, 0.9, 0.2, 0.19, 0.0]), Grid.uniform(7, start=0.97)):
            chain = affine_kernels(SOLID.model(process), GDDIM(1.0), grid)
            c = process(grid.ts[0])
            gain = c.alpha * SOLID.cov @ torch.linalg.inv(c.alpha**2 * SOLID.cov + c.sigma**2 * torch.eye(3, dtype=F64))
            for x in normal(3, 3, seed=4):
                end = chain_law(chain, x, torch.eye(3, dtype=F64))
                expected = SOLID.mean + gain @ (x - c.alpha * SOLID.mean)
                assert torch.allclose(end.mean, expected, rtol=0, atol=1e-12)


def test_telescope() -> None:
    check_telescope()


# ---------------------------------------------------------------- T3: end moments in closed form

VE_MEANS = {0.0: 0.653926245, 0.5: 0.704513331, 1.0: 0.773328073, 2.0: 0.799837632}
VE_VARIANCES = {0.0: 1.633655553, 0.5: 1.665923563, 1.0: 1.688121481, 2.0: 1.689999930}


def ve_moments(eta: float, end: float = 7.0) -> tuple[float, float]:
    """From N(0, T^2): ``m (1 - q^((1 + eta^2) / 2))``, ``s0^2 (1 - q^(1 + eta^2))``, ``q = s0^2 / (s0^2 + T^2)``."""
    q = 1.69 / (1.69 + end**2)
    return 0.8 * (1 - q ** ((1 + eta**2) / 2)), 1.69 * (1 - q ** (1 + eta**2))


def vp_moments(eta: float, rho2: float) -> tuple[float, float]:
    """Prior N(0, 1): the same mean with ``rho_T``, and ``s0^2 (1 + q^(eta^2) (1 - s0^2) / (s0^2 + rho_T^2))``."""
    q = 1.69 / (1.69 + rho2)
    return 0.8 * (1 - q ** ((1 + eta**2) / 2)), 1.69 * (1 + q ** (eta**2) * (1 - 1.69) / (1.69 + rho2))


@pytest.mark.parametrize("eta", VE_MEANS)
def test_the_closed_forms_are_the_printed_numbers(eta: float) -> None:
    mean, variance = ve_moments(eta)
    assert mean == pytest.approx(VE_MEANS[eta], abs=6e-10)
    assert variance == pytest.approx(VE_VARIANCES[eta], abs=6e-10)


@pytest.mark.parametrize("eta", VE_MEANS)
@pytest.mark.parametrize("process", [VE(7.0), VP(0.1, 4.0), RectifiedFlow()], ids=["ve", "vp", "flow"])
def test_end_moments_converge_to_the_closed_form(process: Process, eta: float) -> None:
    """T3: the end law started from the prior goes to the closed form as O(h).

    800 and 1600 steps; extrapolated moments within 1e-3 (3e-2 at eta = 2, whose O(h^2) term is large). A VP with a
    short schedule and a VE with T = 7 forget their start so little that a wrong prior would show; the flow forgets all
    of it.
    """
    if isinstance(process, VE):
        expected = ve_moments(eta)
    else:
        expected = vp_moments(eta, float(process.rho(1.0)) ** 2)
    errors = []
    for n in (800, 1600):
        got = line_moments(LINE, process, GDDIM(eta), Grid.uniform(n), (0.0, process.prior_std**2))
        errors.append(torch.tensor(got, dtype=F64) - torch.tensor(expected, dtype=F64))
    assert float((2 * errors[1] - errors[0]).abs().max()) < (3e-2 if eta == 2.0 else 1e-3)
    assert float(errors[0].norm() / errors[1].norm()) == pytest.approx(2.0, abs=0.35 if eta == 2.0 else 0.1)


@pytest.mark.parametrize(("eta", "variance"), [(0.0, 1.547), (1.0, 1.511), (2.0, 1.309), (3.0, 1.090)])
def test_variance_bias_grows_with_eta(eta: float, variance: float) -> None:
    """100 geometric levels from rho = 7 to 1e-4, then 0: the three digits of section 3d (C) of the control notes."""
    rho = torch.logspace(math.log10(7), -4, 100, dtype=F64)
    ts = torch.cat([(rho / 7).clamp(max=1.0), torch.zeros(1, dtype=F64)])
    assert line_moments(LINE, VE(7.0), GDDIM(eta), Grid(ts), (0.0, 49.0))[1] == pytest.approx(variance, abs=6e-4)


# ---------------------------------------------------------------- terminal variances, six digits

TERMINAL = {
    "euler": (Euler(), (0.185574, 0.232142, 0.249260)),
    "flow-sde": (FlowSDE(0.7), (0.229962, 0.247369, 0.250918)),
    "dance-sde": (DanceSDE(0.3), (0.194974, 0.234819, 0.249372)),
    "cps": (CPS(0.7), (0.137085, 0.166053, 0.180210)),
    "precise": (PRECISE(0.7), (0.175428, 0.227757, 0.249041)),
}


def check_terminal_variances() -> None:
    """Section 4.0 of the preference notes: data N(1, .5^2), uniform grids of 10, 40 and 1000 steps, six digits.

    The mean is exactly 1 in every case. CPS tends to .18, not to .25: it does not keep the marginals.
    """
    law = Gaussian([1.0], [[0.25]])
    for name, (sampler, variances) in TERMINAL.items():
        for n, variance in zip((10, 40, 1000), variances, strict=True):
            mean, end = line_moments(law, RectifiedFlow(), sampler, Grid.uniform(n), (0.0, 1.0))
            assert mean == pytest.approx(1.0, abs=1e-12), (name, n)
            assert end == pytest.approx(variance, abs=6e-7), (name, n)


def test_terminal_variances() -> None:
    check_terminal_variances()


# ---------------------------------------------------------------- observed order = declared order

CONVERGENT = {n: s for n, s in EVERY_SAMPLER.items() if not isinstance(s, CPS | Mixed)}


def observed_order(sampler: Sampler, process: Process, n: int, start: float, end: float) -> float:
    """``log2`` of the ratio of errors (mean and covariance together) at n and 2n uniform steps; d = 3, full."""
    coarse, fine = (
        math.hypot(*errors(SOLID, process, sampler, Grid.uniform(k, start=start, end=end))) for k in (n, 2 * n)
    )
    return math.log2(coarse / fine)


def check_order(sampler: Sampler, process: Process) -> None:
    """The end law's mean and covariance converge at the declared order: 50 to 100 steps from t = .9 to .1, within .2.

    Away from the ends: at t = 1 Euler-Maruyama's noise rate is infinite on some processes, and at t = 0 the last step
    of a multistep solver is of first order.
    """
    scale = VE(5.0) if isinstance(process, VE) else process  # at sigma_max = 80 two hundred uniform steps are too few
    assert observed_order(sampler, scale, 50, 0.9, 0.1) == pytest.approx(sampler.order, abs=0.2), sampler


@pytest.mark.parametrize(("name", "process"), pairs(CONVERGENT, SMOOTH))
def test_order(name: str, process: str) -> None:
    check_order(CONVERGENT[name], SMOOTH[process])


@pytest.mark.parametrize("process", ["rectified-flow", "cosine", "vp"])
@pytest.mark.parametrize("sampler", [Euler(), Heun(), GDDIM(0.0), GDDIM(0.5), GDDIM(1.0)], ids=str)
def test_order_on_the_default_grid(sampler: Sampler, process: str) -> None:
    """The same from t = 1 to t = 0, where Heun's last step on VP is Euler's: 64 to 128 steps, within .2."""
    assert observed_order(sampler, SMOOTH[process], 64, 1.0, 0.0) == pytest.approx(sampler.order, abs=0.2)


def test_multistep_on_the_default_grid_beats_first_order() -> None:
    """DPM-Solver++(2M) to t = 0: uniform steps are of order one in log-SNR there, which costs a logarithm."""
    assert observed_order(DPMSolverPP2M(), RectifiedFlow(), 200, 1.0, 0.0) > 1.7


@pytest.mark.parametrize("outside", [Heun(), DPMSolverPP2M()], ids=str)
def test_order_of_a_mixed_sampler(outside: Sampler) -> None:
    """A window of a fixed share of the steps has the lower order (1), a window of four steps costs O(h^2): order 2."""
    flow = RectifiedFlow()

    def order(share: bool) -> float:
        coarse, fine = (
            math.hypot(
                *errors(
                    SOLID,
                    flow,
                    Mixed(GDDIM(1.0), outside, start=n // 4, length=n // 2 if share else 4),
                    Grid.uniform(n, start=0.9, end=0.1),
                )
            )
            for n in (60, 120)
        )
        return math.log2(coarse / fine)

    assert order(share=True) == pytest.approx(Mixed(GDDIM(1.0), outside).order, abs=0.2)
    assert order(share=False) == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize(("eta", "low", "high"), [(0.5, 0.3, 0.7), (1.0, 1.7, 2.3), (2.0, 0.9, 1.2)])
def test_what_pure_noise_costs_euler_maruyama(eta: float, low: float, high: float) -> None:
    """From t = 1 of a rectified flow the variance error has a term ``h^(2 eta^2)`` beside the O(h) one.

    At eta = .5 it is ``h^.5``, of the other sign, and rules: 2000 to 4000 steps. (At eta = 1 the O(h) term of this
    problem happens to be small.) GDDIM has no such term.
    """
    law, flow = Gaussian([1.0], [[0.25]]), RectifiedFlow()
    coarse, fine = (
        abs(line_moments(law, flow, EulerMaruyama(eta), Grid.uniform(n), (0.0, 1.0))[1] - 0.25) for n in (2000, 4000)
    )
    assert low < math.log2(coarse / fine) < high


def test_cps_does_not_converge() -> None:
    """Its end covariance stays away from the data's: from 100 to 200 steps the error shrinks by less than a tenth."""
    assert observed_order(CPS(), RectifiedFlow(), 100, 0.9, 0.1) < 0.15
    assert not fits(CPS(), EVERY_PROCESS["vp"])
