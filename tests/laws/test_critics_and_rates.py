"""Critics and rates of q against the exact value and q of a policy; LQ at dt = 0.1 unless said otherwise, |z| < 4.5.

Seeds 0 to 15 where a statistic needs repeats: 16 batches of 400 paths, z of their mean.
"""

import math

import pytest
import torch
from torch import Tensor

from girsanov.control import LQ
from girsanov.control.critics import CRITICS, Equations, Galerkin, LeastSquares, Trace, income
from girsanov.control.occupation import Discounted, discounts
from girsanov.control.rates import RATES, TD, Centred, Generator, Regressed
from girsanov.control.values import NetValue, QuadraticValue, generator_of_quadratic, quadratic
from girsanov.distributed import Reduce
from tests.laws.control_cases import F64, POLICY, walked, z_scores

ENV, Z = LQ(dt=0.1), 4.5
CHAIN, CONTINUOUS = ENV.chain().evaluate(POLICY), ENV.solution().evaluate(POLICY)
EXACT = QuadraticValue.of(CHAIN.V)


def test_a_quadratic_value_is_its_form_with_its_derivatives() -> None:
    """n = 3, against autograd; seed 0."""
    g = torch.Generator().manual_seed(0)
    raw, x = torch.randn(4, 4, generator=g, dtype=F64), torch.randn(6, 3, generator=g, dtype=F64)
    form = raw + raw.T
    value = QuadraticValue.of(form)
    y = torch.cat([x, torch.ones(6, 1, dtype=F64)], 1)
    torch.testing.assert_close(value(x), ((y @ form) * y).sum(1) / 2)
    other = NetValue(lambda x: value(x)[:, None])
    torch.testing.assert_close(value.gradient(x), other.gradient(x))
    torch.testing.assert_close(value.hessian(x), other.hessian(x))
    drift, sigma = torch.randn(6, 3, generator=g, dtype=F64), torch.randn(6, 3, 2, generator=g, dtype=F64)
    applied = (drift * value.gradient(x)).sum(1) + 0.5 * torch.einsum("bik,bij,bjk->b", sigma, value.hessian(x), sigma)
    torch.testing.assert_close(generator_of_quadratic(x, drift, sigma) @ value.theta, applied)


# ---- critics


@pytest.mark.parametrize("rate", [math.inf, 2.0, 0.0])
def test_the_exact_value_is_orthogonal_to_every_test_function(rate: float) -> None:
    """``E sum_k zeta_k dM_k = 0``; a value of another discount, or of continuous time, is not."""
    paths, _ = walked(ENV, Discounted(6.0), 4000)
    zeta = Trace(rate)(quadratic(paths.states), ENV)

    def scores(value: QuadraticValue) -> Tensor:
        v = value(paths.x.flatten(0, 1)).view(paths.x.shape[:2])
        delta = math.exp(-ENV.discount * ENV.dt)
        dM = discounts(ENV, zeta.shape[1], v) * (income(ENV, paths) * ENV.dt + delta * v[:, 1:] - v[:, :-1])
        return z_scores((zeta * dM[:, :, None]).sum(1), 0.0)

    assert float(scores(EXACT).abs().max()) < Z
    assert float(scores(QuadraticValue.of(CONTINUOUS.V)).abs().max()) > Z


def solved(critic: LeastSquares | Galerkin) -> Tensor:
    """Coefficients from 16 batches of 400 paths, [16, 3]."""
    found = []
    for seed in range(16):
        paths, _ = walked(ENV, Discounted(5.0), 400, seed=seed)
        found.append(critic.fit(ENV, None, paths, {}, Reduce()).theta)
    return torch.stack(found)


@pytest.mark.parametrize("trace", [Trace(), Trace(2.0)])
def test_least_squares_finds_the_value_of_the_chain(trace: Trace) -> None:
    assert float(z_scores(solved(LeastSquares(trace=trace)), EXACT.theta).abs().max()) < Z


def test_galerkin_finds_the_value_of_continuous_time_with_less_noise() -> None:
    found = solved(Galerkin())
    assert float(z_scores(found, QuadraticValue.of(CONTINUOUS.V).theta).abs().max()) < Z
    noisy = solved(LeastSquares()).std(0)
    assert bool((found.std(0) < noisy).all()) and float(found.std(0)[2] / noisy[2]) < 0.6


def test_equations_are_remembered_scaled() -> None:
    """The second solution is that of the mixture, whatever the size of the first batch's equations."""
    one, two = torch.eye(2, dtype=F64), torch.diag(torch.tensor([1.0, 3.0], dtype=F64))
    state: dict[str, Tensor] = {}
    equations = Equations(memory=0.5, ridge=0.0)
    equations.solve(1000 * one, 1000 * torch.ones(2, dtype=F64), state, Reduce())
    theta = equations.solve(two, torch.ones(2, dtype=F64), state, Reduce())
    gram = one / 2**0.5 + two / 10**0.5
    torch.testing.assert_close(theta, torch.linalg.solve(gram, torch.ones(2, dtype=F64) * (2**-0.5 + 10**-0.5)))


@pytest.mark.parametrize("rate", [math.inf, 2.0, 0.0])
def test_lambda_returns_average_to_the_value(rate: float) -> None:
    """``E[G_0 - V(X_0)] = 0`` from the exact value; at the ends they are the one-step and the whole return."""
    paths, _ = walked(ENV, Discounted(5.0), 4000)
    v, rho = EXACT(paths.x.flatten(0, 1)).view(paths.x.shape[:2]), income(ENV, paths)
    returns = Trace(rate).returns(rho, v, ENV)
    assert float(z_scores(returns - v[:, :-1], 0.0)[[0, 10]].abs().max()) < Z
    delta, steps = math.exp(-ENV.discount * ENV.dt), rho.shape[1]
    if rate == math.inf:
        torch.testing.assert_close(returns, rho * ENV.dt + delta * v[:, 1:])
    if rate == 0.0:
        whole = (discounts(ENV, steps, rho) * rho).sum(1) + delta**steps * v[:, -1]
        torch.testing.assert_close(returns[:, 0], whole)
    assert set(CRITICS) == {"least-squares", "galerkin", "td"}


# ---- rates


@pytest.mark.parametrize("name", ["td", "centred"])
def test_rates_along_paths_average_to_q_of_the_chain(name: str) -> None:
    """``E sum_k w_k f (rate - q) = 0`` for f = 1, u, u x, u^2 with u = a - mu."""
    paths, w = walked(ENV, Discounted(8.0), 4000)
    error = RATES[name]()(ENV, paths, EXACT, w, Reduce()) - CHAIN.q(*paths.flat).view_as(w)
    u = (paths.a.flatten(0, 1) - paths.law.mean).view_as(w)
    for f in (torch.ones_like(u), u, u * paths.states[:, :, 0], u**2):
        assert abs(float(z_scores((w * f * error).sum(1), 0.0))) < Z


def test_the_generators_rate_is_q_of_continuous_time() -> None:
    paths, w = walked(ENV, Discounted(2.0), 50)
    q = Generator()(ENV, paths, QuadraticValue.of(CONTINUOUS.V), w, Reduce())
    torch.testing.assert_close(q, CONTINUOUS.q(*paths.flat).view_as(w), atol=1e-10, rtol=1e-10)


def spreads(dt: float) -> tuple[float, float, float]:
    """Variance of td and centred rates around q at a dt, and ``E |sigma' grad V|^2``."""
    env = LQ(dt=dt)
    exact = env.chain().evaluate(POLICY)
    value = QuadraticValue.of(exact.V)
    paths, w = walked(env, Discounted(4.0), 1500)
    q = exact.q(*paths.flat).view_as(w)
    found = [rate(env, paths, value, w, Reduce()) for rate in (TD(), Centred())]
    push = (env.diffusion(*paths.flat)[:, :, 0] * value.gradient(paths.flat[0])).sum(1).view_as(w)
    td, centred = (float((w * (r - q).square()).sum() / w.sum()) for r in found)
    return td, centred, float((w * push.square()).sum() / w.sum())


def test_the_variance_of_single_rates_is_as_derived() -> None:
    """td: ``E |sigma' grad V|^2 / dt`` to 6 % at dt = 0.02, so it explodes; centred: bounded, it falls to its limit."""
    coarse, fine = spreads(0.1), spreads(0.02)
    assert fine[0] * 0.02 == pytest.approx(fine[2], rel=0.06) and fine[0] > 4 * coarse[0]
    assert 0.5 * coarse[1] < fine[1] < coarse[1] and fine[1] < fine[0] / 20


def test_regressed_rates_are_exact_where_q_is_in_their_span_and_keep_the_gradient() -> None:
    """Fed with td rates, the fit has the same inner products with the policy's score (compatible features), to 1e-6."""
    paths, w = walked(ENV, Discounted(5.0), 800)
    fitted = Regressed(ridge=0.0)(ENV, paths, EXACT, w, Reduce())
    raw = TD()(ENV, paths, EXACT, w, Reduce())
    phi = Regressed().features(*paths.flat, paths.law)
    inner = [phi.T @ (w * r).flatten() for r in (fitted, raw)]
    torch.testing.assert_close(inner[0], inner[1] + phi.T @ (w * 0).flatten(), atol=1e-6 * float(w.sum()), rtol=1e-6)
    assert float((fitted - raw).std()) > 0.5 * float(raw.std())
