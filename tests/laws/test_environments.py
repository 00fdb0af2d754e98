"""Environments: what every one of them promises, and exact solutions against formulas that share no code with them."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import gammaln
from torch import Tensor
from torch.func import hessian, jacrev

from girsanov.control import ENVIRONMENTS, LQ, Environment
from girsanov.control.environments import Pairs, Portfolio, VectorLQ, lq, lq_nd, pairs, portfolio
from girsanov.control.environments.base import annuity
from tests.laws.mutation import Mutation, check, mutants

EXACT = [name for name, cls in ENVIRONMENTS.items() if cls().chain() is not None]


def points(env: Environment, n: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Some states and actions, float64."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda width: torch.randn(n, width, generator=g, dtype=torch.float64)  # noqa: E731
    return draw(env.state_dim), draw(env.action_dim)


def quadrature(k: int, n: int = 7) -> list[tuple[Tensor, float]]:
    """Points [k] and weights with which k normal numbers are averaged, exactly to degree 2 n - 1."""
    x, w = np.polynomial.hermite_e.hermegauss(n)
    w = w / w.sum()
    rows = itertools.product(range(n), repeat=k)
    return [(torch.tensor([x[i] for i in row]), math.prod(w[i] for i in row)) for row in rows]


def generator(env: Environment, value: object, x: Tensor, a: Tensor) -> Tensor:
    """r + b . grad V + tr(sigma sigma' V'') / 2 - beta V by automatic differentiation, [B]."""
    one = lambda y: value(y[None])[0]  # noqa: E731
    out = []
    for y, u in zip(x, a, strict=True):
        sigma = env.diffusion(y[None], u[None])[0]
        spread = torch.trace(sigma @ sigma.T @ hessian(one)(y)) / 2
        along = env.drift(y[None], u[None])[0] @ jacrev(one)(y)
        out.append(env.reward(y[None], u[None])[0] + along + spread - env.discount * one(y))
    return torch.stack(out)


# ---- every environment


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_step_has_the_mean_and_the_covariance_of_the_diffusion(name: str) -> None:
    """``E[x' - x] / dt -> b`` and ``E[(x' - x)(x' - x)'] / dt -> sigma sigma'``, both at order dt: exact averages."""
    errors = []
    for dt in (1e-3, 5e-4):
        env = ENVIRONMENTS[name](dt=dt)
        x, a = points(env)
        sigma = env.diffusion(x, a)
        first, second = torch.zeros_like(x), torch.zeros_like(sigma @ sigma.mT)
        for z, w in quadrature(env.noise_dim):
            move = env.step(x, a, z.expand(len(x), -1)) - x
            first += w * move / dt
            second += w * move[:, :, None] * move[:, None] / dt
        errors.append([float((first - env.drift(x, a)).abs().max()), float((second - sigma @ sigma.mT).abs().max())])
    for coarse, fine in zip(*errors, strict=True):
        assert fine < 0.5
        assert fine < 1e-9 or 1.8 < coarse / fine < 2.2


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_starts_follow_their_law_and_their_seed(name: str) -> None:
    """4000 starts, seed 0; 5 standard errors."""
    env = ENVIRONMENTS[name]()
    x = env.start(4000, torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(x, env.start(4000, torch.Generator().manual_seed(0), dtype=torch.float64))
    assert x.shape == (4000, env.state_dim) and env.start(3).dtype == torch.float32
    mean, std = (torch.tensor(getattr(env, f"start_{k}") or [0.0]) for k in ("mean", "std"))
    if name in ("pairs", "mountain-car"):
        assert not x[:, 1].any()
        x = x[:, :1]
    assert ((x.mean(0) - mean).abs() < 5 * std / 4000**0.5 + 1e-12).all()
    assert ((x.std(0) - std).abs() < 5 * std / 8000**0.5 + 1e-12).all()


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_steps_and_rewards_are_those_of_one_copy_and_have_gradients(name: str) -> None:
    env = ENVIRONMENTS[name]()
    x, a = points(env)
    z = points(env, seed=1)[0].new_ones(len(x), env.noise_dim)
    together = env.step(x, a, z)
    for i in range(len(x)):
        torch.testing.assert_close(env.step(x[i : i + 1], a[i : i + 1], z[i : i + 1])[0], together[i])
    f = lambda x, a: (env.step(x, a, z).sum() + env.reward(x, a).sum())[None]  # noqa: E731
    assert torch.autograd.gradcheck(f, (x.requires_grad_(), a.requires_grad_()))


# ---- exact solutions


@pytest.mark.parametrize("name", EXACT)
def test_q_is_the_generator_applied_to_the_value(name: str) -> None:
    env = ENVIRONMENTS[name]()
    x, a = points(env)
    solution = env.solution()
    torch.testing.assert_close(solution.q(x, a), generator(env, solution.value, x, a), rtol=1e-9, atol=1e-9)
    slope = torch.stack([jacrev(lambda y: solution.value(y[None])[0])(y) for y in x])
    torch.testing.assert_close(solution.gradient(x), slope, rtol=1e-12, atol=1e-12)


def law_of_the_chain(name: str) -> None:
    """``q = (r dt + delta E V(x') - V) / dt`` for the steps that are taken; V is quadratic, so the average is exact."""
    env = ENVIRONMENTS[name]()
    x, a = points(env)
    solution = env.chain()
    after = sum(w * solution.value(env.step(x, a, z.expand(len(x), -1))) for z, w in quadrature(env.noise_dim, 3))
    delta = math.exp(-env.discount * env.dt)
    q = env.reward(x, a) + (delta * after - solution.value(x)) / env.dt
    torch.testing.assert_close(solution.q(x, a), q, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", EXACT)
def test_the_solution_of_the_chain_is_that_of_the_steps(name: str) -> None:
    law_of_the_chain(name)


def log_density(env: Environment, solution: object, x: Tensor, a: Tensor) -> Tensor:
    """Of the best policy: normal, but for the consumption of the portfolio, [B]."""
    mean, covariance = solution.policy(x)
    if not isinstance(env, Portfolio):
        return torch.distributions.MultivariateNormal(mean, covariance).log_prob(a)
    shares = torch.distributions.MultivariateNormal(mean[:, :-1], covariance[:, :-1, :-1]).log_prob(a[:, :-1])
    w = annuity(env.discount, solution.dt) * math.exp(-env.discount * solution.dt)
    shape, u = 1 / env.entropy, a[:, -1]
    y = w * u.exp() / env.entropy  # has a Gamma(shape) law, and dy / du = y
    return shares + shape * y.log() - y - float(gammaln(shape))


def law_of_the_optimum(name: str) -> None:
    """The best policy is ``exp(q / gamma)``, at every state and action: Bellman's equation."""
    env = ENVIRONMENTS[name]()
    x, a = points(env)
    for solution in (env.solution(), env.chain()):
        expected = env.entropy * log_density(env, solution, x, a)
        torch.testing.assert_close(solution.q(x, a), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", EXACT)
def test_the_best_policy_is_the_exponential_of_q(name: str) -> None:
    law_of_the_optimum(name)


@pytest.mark.parametrize("name", EXACT)
def test_the_bias_of_the_chain_is_of_order_dt(name: str) -> None:
    x = points(ENVIRONMENTS[name]())[0]
    errors = []
    for dt in (2e-3, 1e-3):
        env = ENVIRONMENTS[name](dt=dt)
        errors.append(float((env.chain().value(x) - env.solution().value(x)).abs().max()))
    assert 1.9 < errors[0] / errors[1] < 2.1


def test_pair_trading_has_the_published_solution() -> None:
    env = Pairs(speed=0.8, level=-0.2, volatility=0.4, correlation=-0.5, rate=0.03, discount=0.7, entropy=0.05)
    k, theta, e, beta, gamma = env.speed, env.level, env.volatility, env.discount, env.entropy
    c0 = k * theta + e**2 / 2 + env.correlation * env.stock_volatility * e
    f2 = k**2 / (2 * beta * e**2 * (beta + 2 * k))
    f1 = (2 * k * theta * f2 - c0 * k / (beta * e**2)) / (beta + k)
    growth = (env.rate + c0**2 / (2 * e**2)) / beta
    f0 = (growth + k * theta * f1 + e**2 * f2 + gamma / 2 * math.log(2 * math.pi * gamma * beta / e**2)) / beta
    x = points(env)[0]
    value = x[:, 1] / beta + f2 * x[:, 0] ** 2 + f1 * x[:, 0] + f0
    torch.testing.assert_close(env.solution().value(x), value, rtol=1e-11, atol=1e-11)
    mean, covariance = env.solution().policy(x)
    torch.testing.assert_close(mean[:, 0], (c0 - k * x[:, 0]) / e**2, rtol=1e-11, atol=1e-11)
    assert covariance[0].item() == pytest.approx(gamma * beta / e**2, rel=1e-12)


def test_only_policies_that_do_not_look_at_the_wealth_have_a_closed_form() -> None:
    env = Pairs()
    again = env.solution().evaluate(env.solution().affine)
    x = points(env)[0]
    torch.testing.assert_close(again.value(x), env.solution().value(x), rtol=1e-12, atol=1e-12)


def test_the_best_normal_portfolio_is_the_best_normal_one_and_costs_its_divergence() -> None:
    """``V* - V = (gamma / beta) KL(pi || pi*)``: the divergence by quadrature of the coordinate that is not normal."""
    env = Portfolio(discount=0.3, entropy=0.4)
    for dt in (0.0, env.dt):
        best, normal = env.optimum(dt), env.best_normal(dt)
        mean, std = float(normal.mean[-1]), float(normal.covariance[-1, -1]) ** 0.5
        z, w = np.polynomial.hermite_e.hermegauss(60)
        w = w / w.sum()
        shape, weight = 1 / env.entropy, annuity(env.discount, dt) * math.exp(-env.discount * dt)
        y = weight * np.exp(mean + std * z) / env.entropy
        mine = -(z**2) / 2 - math.log(std) - math.log(2 * math.pi) / 2
        divergence = float(w @ (mine - (shape * np.log(y) - y - gammaln(shape))))
        cost = best.offset - normal.offset
        assert cost == pytest.approx(annuity(env.discount, dt) * env.entropy * divergence, rel=1e-9)
        for i in range(3):
            for step in (1e-3, -1e-3):
                moved = normal.mean.clone()
                moved[i] += step
                assert best.evaluate(moved, normal.covariance).offset < normal.offset
                wider = normal.covariance.clone()
                wider[i, i] *= 1 + step
                assert best.evaluate(normal.mean, wider).offset < normal.offset


def test_merton_holds_what_he_said() -> None:
    env = Portfolio(excess=(0.05,), volatility=((0.2,),), entropy=1e-6)
    mean, _ = env.solution().policy(torch.zeros(1, 1, dtype=torch.float64))
    assert mean[0, 0].item() == pytest.approx(0.05 / 0.2**2, rel=1e-12)
    assert math.exp(mean[0, 1].item()) == pytest.approx(env.discount, rel=1e-5)  # consumes at the rate beta


def test_the_general_problem_has_the_scalar_one_as_a_case() -> None:
    one = LQ(start_mean=0.3, start_std=0.5)
    box = lambda v: ((v,),)  # noqa: E731
    costs = {"M": box(one.M), "N": box(one.N), "R": box(one.R), "P": (one.P,), "Q": (one.Q,)}
    drift = {"A": box(one.A), "B": box(one.B), "C": (box(one.C),), "D": (box(one.D),), "s": ()}
    same = VectorLQ(**drift, **costs, discount=one.discount, start_mean=(0.3,), start_std=(0.5,))
    x, a = points(one)
    z = torch.ones_like(a)
    for f in ("drift", "diffusion", "reward"):
        torch.testing.assert_close(getattr(same, f)(x, a), getattr(one, f)(x, a), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(same.step(x, a, z), one.step(x, a, z), rtol=1e-13, atol=1e-13)
    for mine, theirs in ((one.solution(), same.solution()), (one.chain(), same.chain())):
        torch.testing.assert_close(mine.V, theirs.V, rtol=1e-12, atol=1e-12)
        assert mine.objective == pytest.approx(theirs.objective, rel=1e-12)


# ---- defects that the laws must notice

DEFECTS = [
    Mutation(lq.LQ, "step", "1 + self.dt * self.A", "1 - self.dt * self.A", lambda: law_of_the_chain("lq")),
    Mutation(lq.LQ, "step", "root * self.C", "self.C", lambda: law_of_the_chain("lq")),
    Mutation(lq.LQ, "reward", "alpha=-self.R", "alpha=-2 * self.R", lambda: law_of_the_optimum_generator("lq")),
    Mutation(lq_nd.VectorLQ, "step", "noise[:, j : j + 1]", "noise[:, :1]", lambda: law_of_the_chain("lq-nd")),
    Mutation(pairs.Pairs, "reduced", "math.exp(-self.discount * dt) *", "", lambda: law_of_the_chain("pairs")),
    Mutation(pairs.PairsSolution, "per_log_wealth", "annuity(", "1.01 * annuity(", lambda: law_of_the_chain("pairs")),
    Mutation(portfolio.Portfolio, "growth", "/ 2", "", lambda: law_of_the_optimum("portfolio")),
    Mutation(portfolio.Portfolio, "optimum", "gamma / w))[None]", "w))[None]", lambda: law_of_the_policy_mean()),
    Mutation(
        portfolio.Portfolio,
        "optimum",
        "math.lgamma(1 / gamma)",
        "math.lgamma(gamma)",
        lambda: law_of_the_optimum("portfolio"),
    ),
]


def law_of_the_optimum_generator(name: str) -> None:
    """The environment's own drift, noise and reward give the q that its solution states."""
    env = ENVIRONMENTS[name]()
    x, a = points(env)
    torch.testing.assert_close(env.solution().q(x, a), generator(env, env.solution().value, x, a))


def law_of_the_policy_mean() -> None:
    """The mean of the consumption's law by quadrature of its density."""
    env = Portfolio()
    solution = env.solution()
    u = torch.linspace(-12, 4, 8001, dtype=torch.float64)
    a = torch.cat([solution.mean[:-1].expand(len(u), -1), u[:, None]], 1)
    p = (solution.q(torch.zeros(len(u), 1, dtype=torch.float64), a) / env.entropy).exp()
    torch.testing.assert_close((p * u).sum() / p.sum(), solution.mean[-1], rtol=1e-8, atol=0)


def test_the_consumption_has_the_stated_mean() -> None:
    law_of_the_policy_mean()


@mutants(DEFECTS)
def test_the_laws_notice_defects(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)
