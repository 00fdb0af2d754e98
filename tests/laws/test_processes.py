"""Laws of the noising processes: derivatives, ends, inverses, the forward SDE, the prior."""

import math

import pytest
import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.processes import VE, VP, Process, RectifiedFlow, VPTable
from tests.laws.cases import EVERY_PROCESS, F64

INNER = torch.linspace(0.0313, 0.9877, 41, dtype=F64)  # no multiple of 1/1000: the table's derivative jumps there
TABLE = VPTable.stable_diffusion()


def check_derivatives(process: Process) -> None:
    """``d_alpha, d_sigma`` are the derivatives of ``alpha, sigma``: autograd to 1e-11, central differences to 1e-6."""
    t = INNER.clone().requires_grad_(True)
    c = process(t)
    for value, slope in ((c.alpha, c.d_alpha), (c.sigma, c.d_sigma)):
        by_autograd = torch.zeros_like(t)
        if value.requires_grad:
            (by_autograd,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        assert torch.allclose(by_autograd, slope.detach(), rtol=1e-9, atol=1e-9)
    h = 1e-6
    up, down = process(INNER + h), process(INNER - h)
    for name, slope in (("alpha", c.d_alpha), ("sigma", c.d_sigma)):
        central = (getattr(up, name) - getattr(down, name)) / (2 * h)
        assert torch.allclose(central, slope.detach(), rtol=1e-6, atol=1e-7)


def check_forward_sde(process: Process) -> None:
    """``d alpha / dt = f alpha`` and ``d sigma^2 / dt = 2 f sigma^2 + g^2``: the SDE has the process's marginals."""
    t = INNER.clone().requires_grad_(True)
    c = process(t)
    (rate,) = torch.autograd.grad((c.sigma**2).sum(), t)
    f, g2 = process.f(INNER), process.g2(INNER)
    assert torch.allclose(c.d_alpha.detach(), f * c.alpha.detach(), rtol=1e-10, atol=1e-12)
    assert torch.allclose(rate, 2 * f * c.sigma.detach() ** 2 + g2, rtol=1e-8, atol=1e-10)
    assert bool((g2 > 0).all())


def check_inverse(process: Process) -> None:
    """``time_of_rho(rho(t)) = t``, at both ends too, and rho rises."""
    t = torch.cat([torch.tensor([0.0, 1e-6, 0.0004], dtype=F64), INNER, torch.tensor([1.0], dtype=F64)])
    rho = process.rho(t)
    assert bool((rho.diff() > 0).all())
    assert torch.allclose(process.time_of_rho(rho), t, rtol=0, atol=1e-9)


def check_ends(process: Process) -> None:
    """Clean data at t = 0; at t = 1 the prior has the standard deviation of the noise."""
    start, end = process(0.0), process(1.0)
    assert float(start.alpha) == 1.0 and float(start.sigma) == 0.0
    assert float(end.sigma) == pytest.approx(process.prior_std, rel=3e-3)  # Stable Diffusion's table stops at .9977
    assert float(process.prior(torch.ones(2, dtype=F64))[0]) == process.prior_std


LAWS = [check_derivatives, check_forward_sde, check_inverse, check_ends]


@pytest.mark.parametrize("law", LAWS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", EVERY_PROCESS)
def test_law(name: str, law: object) -> None:
    law(EVERY_PROCESS[name])


@pytest.mark.parametrize("name", ["rectified-flow", "cosine"])
def test_pure_noise_at_one_is_exact(name: str) -> None:
    end = EVERY_PROCESS[name](1.0)
    assert float(end.alpha) == 0.0 and float(end.sigma) == 1.0


@pytest.mark.parametrize("name", EVERY_PROCESS)
def test_one_sided_derivatives_at_the_ends(name: str) -> None:
    """One-sided differences at t = 0 and t = 1, to 1e-4. VP's sigma has an infinite slope at 0, and says so."""
    process, h = EVERY_PROCESS[name], 1e-8
    for t, s in ((0.0, h), (1.0, 1.0 - h)):
        c, near = process(t), process(s)
        assert float((near.alpha - c.alpha) / (s - t)) == pytest.approx(float(c.d_alpha), rel=1e-4, abs=1e-4)
        if name == "vp" and t == 0.0:
            assert float(c.d_sigma) == math.inf
        else:
            assert float((near.sigma - c.sigma) / (s - t)) == pytest.approx(float(c.d_sigma), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", ["cosine", "vp", "vp-table"])
def test_variance_is_preserved(name: str) -> None:
    c = EVERY_PROCESS[name](torch.linspace(0, 1, 1001, dtype=F64))
    assert torch.allclose(c.alpha**2 + c.sigma**2, torch.ones(1001, dtype=F64), rtol=0, atol=1e-14)


def test_the_table_is_exact_at_its_points() -> None:
    """alpha^2 at ``(i + 1) / N`` is the table's own number, the alphas_cumprod of Stable Diffusion among them."""
    times = torch.stack([TABLE.index(i) for i in range(1000)])
    table = torch.tensor(TABLE.alphas_cumprod, dtype=F64)
    assert torch.allclose(TABLE(times).alpha ** 2, table, rtol=1e-12, atol=0)
    assert float(table[0]) == pytest.approx(1 - 0.00085, abs=1e-12)
    assert float(table[-1]) == pytest.approx(0.0046601, abs=1e-6)


def test_the_table_is_continuous_and_log_linear_between_points() -> None:
    i, eps = 437, 1e-9
    t, s = float(TABLE.index(i)), float(TABLE.index(i + 1))
    assert float(TABLE.rho(t + eps)) == pytest.approx(float(TABLE.rho(t - eps)), rel=1e-6)
    middle = float(torch.log(TABLE.rho((t + s) / 2)))
    ends = float(torch.log(TABLE.rho(t)) + torch.log(TABLE.rho(s))) / 2
    assert middle == pytest.approx(ends, abs=1e-12)


def test_vp_is_its_beta_integral() -> None:
    """``alpha^2(1) = exp(-(beta_min + beta_max) / 2)``: e^-10.05 for the usual 0.1 and 20."""
    assert float(VP()(1.0).alpha ** 2) == pytest.approx(math.exp(-10.05), rel=1e-12)


@pytest.mark.parametrize("name", EVERY_PROCESS)
def test_times_of_a_batch_are_those_of_each_sample(name: str) -> None:
    process = EVERY_PROCESS[name]
    t = torch.tensor([0.02, 0.5, 0.77, 1.0], dtype=F64)
    batch = process(t)
    for i, one in enumerate(t):
        alone = process(one)
        for part in ("alpha", "sigma", "d_alpha", "d_sigma"):
            assert torch.equal(getattr(batch, part)[i], getattr(alone, part))


def test_infinite_rates_are_infinite_not_nan() -> None:
    process = RectifiedFlow()
    assert float(process.rho(1.0)) == math.inf
    assert float(process.g2(1.0)) == math.inf
    assert float(process.f(1.0)) == -math.inf


def raises(action: object, sentence: str) -> None:
    with pytest.raises(GirsanovError) as error:
        action()
    assert str(error.value) == sentence


def test_bad_input_is_told() -> None:
    flow = RectifiedFlow()
    outside = (
        "lies outside [0, 1]: data is at t = 0 and noise at t = 1, so divide a step index by the number of training "
        "steps"
    )
    raises(lambda: flow(1.5), f"time 1.5 {outside}")
    raises(lambda: flow(math.nan), f"time nan {outside}")
    raises(lambda: flow(torch.tensor([0.5, -0.1], dtype=F64)), f"time [0.5, -0.1] {outside}")
    raises(lambda: flow(torch.zeros(2, 2)), "a time has shape [] or [B], not [2, 2]: pass one time, or one per sample")
    raises(lambda: VP(20.0, 0.1), "VP needs 0 < beta_min <= beta_max, not 20.0 and 0.1")
    raises(lambda: VE(0.0), "VE needs sigma_max > 0, not 0.0")
    falling = "a table of alpha_bar must be one list of falling numbers inside (0, 1)"
    for table in ([0.5, 0.9], [0.9, 0.0], [0.9], Tensor([[0.9, 0.5]])):
        raises(lambda table=table: VPTable(table), falling)
