"""Score as action in closed form: the advantage rate, the policy gradient (T5), the optimum (T6), increments of the
value (T7), what exact values look like, and the bound behind the trust region. Float64, no sampling.
"""

import dataclasses
import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.continuous import AdvantageRate, EnergyPrice, GaussianPolicy, PathKLPrice, SquareRootKL
from girsanov.methods.continuous import rate as rate_file
from girsanov.methods.continuous.price import Price
from girsanov.models import Model
from girsanov.nets import skip as skip_file
from girsanov.nets.skip import LEVER, CosineSkip, FullSkip, TemperedSkip
from girsanov.nets.value import Value
from girsanov.predictions import convert
from girsanov.problems import Gaussian, OptimalControl, QuadraticReward
from girsanov.problems.linear_score import LinearScore
from girsanov.processes import VE, VP, Process, RectifiedFlow
from girsanov.samplers import GDDIM, Euler, EulerMaruyama
from girsanov.types import Step
from tests.laws.mutation import Mutation, check, mutants

F64 = torch.float64
BETA, S0, A = 0.7, 1.3, 1.5
PROCESSES: dict[str, Process] = {"flow": RectifiedFlow(), "vp": VP(0.1, 6.0), "ve": VE(5.0)}
SOLID = Gaussian([0.3, -0.4, 0.9], [[1.0, 0.3, 0.1], [0.3, 0.8, -0.2], [0.1, -0.2, 0.5]])
BENT = QuadraticReward([[0.8, 0.2, 0.0], [0.2, 0.5, 0.1], [0.0, 0.1, 0.6]], [0.5, -0.3, 0.2])
NODES, WEIGHTS = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(12))
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def time(t: float) -> Tensor:
    return torch.tensor(t, dtype=F64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def prices(eta: float) -> Price:
    """The path KL where there is noise, an energy where there is none."""
    return PathKLPrice(BETA) if eta > 0 else EnergyPrice(BETA)


def linear(eta: float = 1.0, start: float = 0.9, **changes: object) -> LinearScore:
    """A policy that is not the optimum, on VP and Gaussian data."""
    process = PROCESSES["vp"]
    moment = marginal(process, start)
    theta0 = lambda t: 1 / marginal(process, t)  # noqa: E731
    base = LinearScore(
        AdvantageRate(process, prices(eta), eta), A, lambda t: theta0(t) + 0.3 + 0.2 * t, theta0, start, moment
    )
    return dataclasses.replace(base, **changes)


def marginal(process: Process, t: float) -> float:
    c = process(t)
    return float(c.alpha**2 * S0**2 + c.sigma**2)


# ---- the rate


def check_rate_of_policy(eta: float) -> None:
    """The rate integrates to zero under the policy, whatever its covariance; twelve-node quadrature in d = 2."""
    rate, t = AdvantageRate(PROCESSES["flow"], prices(eta), eta), time(0.4)
    x = torch.cartesian_prod(NODES, NODES)
    w = (WEIGHTS[:, None] * WEIGHTS[None, :]).flatten()
    mean, reference, gradient = normal(1, 2, seed=1), normal(1, 2, seed=2), normal(1, 2, seed=3)
    for variance in (0.1, 2.5):
        policy = GaussianPolicy(mean.expand(len(x), 2), time(variance))
        actions = policy.sample(x)
        q = rate(t, actions, policy.mean, reference.expand(len(x), 2), gradient.expand(len(x), 2), policy.trace)
        assert abs(float(w @ q)) < 1e-11
        assert float(q.abs().max()) > 0.1


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0, 2.0])
def test_the_rate_integrates_to_zero_under_the_policy(eta: float) -> None:
    check_rate_of_policy(eta)


def check_generator(eta: float) -> None:
    """The closed form is the generator: price, time derivative, drift and diffusion of ``V = P x^2 / 2 + c``."""
    problem = linear(eta, variance=lambda t: 0.4 + t)
    rate, value = problem.rate, problem.value()
    for t in (0.2, 0.7):
        P, _ = value(t)
        P_dot, c_dot = problem.slope(t, P)
        x, a = normal(6, 1, seed=4), normal(6, 1, seed=5)
        f, lever, stiffness = (float(v) for v in (rate.process.f(t), rate.lever(t), rate.stiffness(t)))
        noise = eta**2 * float(rate.process.g2(t))
        mean, reference = -problem.theta(t) * x, -problem.theta0(t) * x
        paid = -0.5 * stiffness * (a - reference).square().sum(1)
        moved = -(0.5 * P_dot * x.square().sum(1) + c_dot)  # sampling runs against t
        drift = ((-f * x + lever * a) * P * x).sum(1)
        generator = paid + moved + drift + 0.5 * noise * P
        closed = rate(time(t), a, mean, reference, P * x, problem.variance(t))
        torch.testing.assert_close(closed, generator, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0, 2.0])
def test_the_closed_form_is_the_generator(eta: float) -> None:
    check_generator(eta)


def check_best(process: str, eta: float) -> None:
    """In d = 3 with full covariance the best action is the optimal score, and ``q = -K |a - a*|^2 / 2`` there."""
    control = OptimalControl(SOLID, BENT, BETA, PROCESSES[process], eta)
    rate, t, x = AdvantageRate(PROCESSES[process], PathKLPrice(BETA), eta), time(0.35), normal(5, 3, seed=6)
    reference = SOLID.score(x, PROCESSES[process](t))
    gradient = control.value_gradient(x, t)
    best = rate.best(t, reference, gradient)
    torch.testing.assert_close(best, reference + control.score_correction(x, t), rtol=1e-10, atol=1e-12)
    action = best + normal(5, 3, seed=7)
    wanted = -0.5 * rate.stiffness(t) * (action - best).square().sum(1)
    torch.testing.assert_close(rate(t, action, best, reference, gradient), wanted, rtol=1e-10, atol=1e-10)
    assert float(rate.slope(t, best, reference, gradient).abs().max()) < 1e-10


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0])
def test_at_the_optimum_the_rate_is_minus_the_price_of_leaving_it(process: str, eta: float) -> None:
    check_best(process, eta)


def check_stein(eta: float) -> None:
    """``E[grad log pi q]`` is the slope for every covariance: exploration changes no mean gradient (Stein's lemma)."""
    rate, t = AdvantageRate(PROCESSES["vp"], prices(eta), eta), time(0.5)
    reference, gradient, found = normal(1, 1, seed=8), normal(1, 1, seed=9), []
    for variance in (0.05, 1.0, 4.0):
        mean = torch.tensor([[0.3]], dtype=F64, requires_grad=True)
        policy = GaussianPolicy(mean.expand(len(NODES), 1), time(variance))
        actions = policy.sample(NODES[:, None]).detach()
        q = rate(t, actions, policy.mean, reference, gradient, policy.trace).detach()
        (slope,) = torch.autograd.grad((WEIGHTS * policy.log_prob(actions) * q).sum(), mean)
        found.append(slope)
        torch.testing.assert_close(slope, rate.slope(t, mean.detach(), reference, gradient), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[0], found[2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_covariance_of_exploration_cancels(eta: float) -> None:
    check_stein(eta)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_the_best_covariance_with_an_entropy_bonus(eta: float) -> None:
    """``gamma / K`` maximises ``E q + gamma entropy`` over variances: its derivative is 0 there."""
    rate, t, gamma = AdvantageRate(PROCESSES["vp"], prices(eta), eta), time(0.5), 0.2
    best = float(rate.best_variance(t, gamma))

    def payoff(variance: float) -> float:  # E q less what does not depend on the variance, and the entropy
        return -0.5 * float(rate.stiffness(t)) * variance + 0.5 * gamma * math.log(variance)

    h = 1e-5 * best
    assert abs(payoff(best + h) - payoff(best - h)) < 1e-9 * abs(payoff(best))
    assert payoff(best) > max(payoff(0.9 * best), payoff(1.1 * best))


# ---- T5, T6, T7


def check_policy_gradient(eta: float = 1.0) -> None:
    """T5: the derivative in the slope of the score on an interval against central differences of J, to 1e-7."""
    problem, low, high, h = linear(eta), 0.3, 0.5, 1e-4

    def bumped(step: float) -> float:
        theta = lambda t: problem.theta(t) + (step if low <= t <= high else 0.0)  # noqa: E731
        return dataclasses.replace(problem, theta=theta, breaks=(low, high)).objective()

    numeric = (bumped(h) - bumped(-h)) / (2 * h)
    assert abs(problem.derivative(low, high) - numeric) < 1e-7 * abs(numeric)


@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_the_policy_gradient_is_that_of_finite_differences(eta: float) -> None:
    check_policy_gradient(eta)


def check_optimum(eta: float = 1.0) -> None:
    """T6: with ``Theta = Theta0 - l P / K`` the value is the closed form to 1e-8 and the policy gradient vanishes."""
    base = linear(eta)
    control = OptimalControl(Gaussian(0.0, S0**2), QuadraticReward(A, 0.0), BETA, base.rate.process, eta)
    one = torch.ones(1, 1, dtype=F64)

    @cache
    def curvature(t: float) -> float:
        return float(control.value_gradient(one, time(t)))

    def best(t: float) -> float:
        return base.theta0(t) - float(base.rate.lever(t) / base.rate.stiffness(t)) * curvature(t)

    tuned = dataclasses.replace(base, theta=best)
    value = tuned.value()
    for t in (0.2, 0.6, 0.9):
        P, c = value(t)
        assert abs(P - curvature(t)) < 1e-8
        assert abs(0.5 * P + c - float(control.value(one, time(t)))) < 1e-8
    assert abs(tuned.derivative(0.3, 0.5)) < 1e-8 < abs(base.derivative(0.3, 0.5))
    if eta == 1.0:  # the formula of the notes
        c = base.rate.process(0.6)
        k, s2 = (
            float(c.alpha) * S0**2 / marginal(base.rate.process, 0.6),
            1 / (1 / S0**2 + float(c.alpha / c.sigma) ** 2),
        )
        assert abs(curvature(0.6) + A * k**2 / (1 + A * s2 / BETA)) < 1e-12


@pytest.mark.parametrize("eta", [1.0, 0.6])
def test_the_optimum_of_the_linear_score_problem(eta: float) -> None:
    check_optimum(eta)


def increment_error(eta: float, sampler: object, steps: tuple[float, float]) -> list[float]:
    """Largest error of ``(E[V(x_s) | x, a] - V(x) + running) / h`` against q for two steps, through the kernel."""
    problem, t = linear(eta), 0.6
    process, rate, value = problem.rate.process, problem.rate, problem.value()
    x, a = normal(8, 1, seed=10), normal(8, 1, seed=11)
    P, c0 = value(t)
    mean, reference = -problem.theta(t) * x, -problem.theta0(t) * x
    wanted, errors = rate(time(t), a, mean, reference, P * x), []
    played, untuned = (Model(lambda x, t, c, v=v: v, process, "score", (1,)) for v in (a, reference))
    for h in steps:
        step = Step(time(t), time(t - h), 0, 1)
        kernel, base = (sampler.kernel(m, x, step)[0] for m in (played, untuned))
        Ps, cs = value(t - h)
        after = 0.5 * Ps * (kernel.mean.square().sum(1) + float(kernel.std) ** 2) + cs
        running = -rate.price.charge(kernel, step, kernel.mean, base.mean)
        found = (after - (0.5 * P * x.square().sum(1) + c0) + running) / h
        errors.append(float((found - wanted).abs().max()))
    return errors


def check_increments(eta: float, sampler: object) -> None:
    """T7: the error is O(dt), the observed order between 1/200 and 1/400 is 1 to 0.1."""
    coarse, fine = increment_error(eta, sampler, (0.005, 0.0025))
    assert abs(math.log2(coarse / fine) - 1) < 0.1 and fine < 0.2


@pytest.mark.parametrize(
    ("eta", "sampler"),
    [(1.0, GDDIM(1.0)), (0.6, GDDIM(0.6)), (1.0, EulerMaruyama(1.0)), (0.0, GDDIM(0.0)), (0.0, Euler())],
    ids=lambda v: repr(v),
)
def test_increments_of_the_value_tend_to_the_advantage_rate(eta: float, sampler: object) -> None:
    check_increments(eta, sampler)


# ---- exact values: section 9 (4) of the notes


def values_at(skip: object, t: float, learned: list[float] | None, reward: QuadraticReward) -> tuple[Tensor, Tensor]:
    """States [B, 1] at t, and what is left for a network: the exact value less the skip's part, over c_out."""
    law, process, x = Gaussian(0.4, S0**2), PROCESSES["vp"], normal(7, 1, seed=12)
    model = law.model(process)
    clean = convert(model(x, time(t)), x, process(t), "velocity", "x0")
    c_skip, c_out = skip(time(t), process(t), torch.tensor(learned or [], dtype=F64))
    if learned is None:  # the value of the untuned model: E[r(x_0) | x_t]
        c = process(t)
        s2 = 1 / (1 / S0**2 + (c.alpha / c.sigma) ** 2)
        exact = reward.b * clean[:, 0] - 0.5 * reward.A[0, 0] * (clean[:, 0] ** 2 + s2)
    else:
        exact = OptimalControl(law, reward, BETA, process).value(x, time(t))
    return x, (exact - c_skip * reward(clean)) / c_out


def check_full_skip() -> None:
    """Evaluation: ``V - RM(x0_hat)`` is ``-(a s_0^2 / 2) w``, a constant for the network; with cos it depends on x."""
    reward, left = QuadraticReward(A, 0.6), []
    for t in (0.1, 0.5, 0.9):
        _, rest = values_at(FullSkip(data_std=S0), t, None, reward)
        left.append(rest)
        _, other = values_at(CosineSkip(), t, None, reward)
        assert float(other.std()) > 1e-3
    torch.testing.assert_close(torch.stack(left), torch.full((3, 7), -0.5 * A * S0**2, dtype=F64), rtol=1e-9, atol=0)


def test_the_value_of_the_untuned_model_has_a_full_skip() -> None:
    check_full_skip()


def check_tempered_skip() -> None:
    """The optimum: with ``c = a s_0^2 / beta`` what is left is a function of time, that of the notes."""
    for a in (A, -0.2):
        reward, growth = QuadraticReward(a, 0.6), math.log1p(a * S0**2 / BETA)
        for t in (0.1, 0.5, 0.9):
            _, rest = values_at(TemperedSkip(data_std=S0), t, [growth / LEVER, 0.0], reward)
            c = PROCESSES["vp"](t)
            w = float(c.sigma**2 / (c.alpha**2 * S0**2 + c.sigma**2))
            k = 1 + a * S0**2 * w / BETA
            wanted = 0.6**2 * S0**2 * w / (2 * BETA * k) - 0.5 * BETA * math.log(k)
            torch.testing.assert_close(rest * w, torch.full((7,), wanted, dtype=F64), rtol=1e-9, atol=1e-12)
            _, other = values_at(FullSkip(data_std=S0), t, [0.0], reward)
            assert float(other.std()) > 1e-3


def test_the_optimal_value_has_a_tempered_skip() -> None:
    check_tempered_skip()


@pytest.mark.parametrize("name", [n for n in skip_file.SKIPS if n != "none"])
def test_at_the_data_the_value_is_the_reward_and_adding_a_constant_adds_it(name: str) -> None:
    skip, x, t = skip_file.SKIPS[name](), normal(4, 2, seed=13), time(0.6)

    def made(rewards: Tensor) -> Value:
        value = Value(lambda x, t, c: x.sum(1), skip, PROCESSES["flow"]).double()
        value.calibrate(rewards)
        return value

    r = normal(4, seed=14)
    torch.testing.assert_close(made(r)(x, time(0.0), None, r), r, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made(r + 5)(x, t, None, r + 5), made(r)(x, t, None, r) + 5, rtol=1e-9, atol=1e-9)
    with pytest.raises(GirsanovError, match="leans on the reward"):
        made(r)(x, t, None)


def test_a_tempered_skip_is_monotone_and_starts_as_the_full_one() -> None:
    t = torch.linspace(0, 1, 30, dtype=F64)
    c, skip = PROCESSES["flow"](t), TemperedSkip()
    for p, sign in ((0.2, -1), (-0.3, 1)):
        weights = skip(t, c, torch.tensor([p, 0.05], dtype=F64))[0]
        assert bool((sign * weights.diff() > 0).all()) and float(weights[0]) == 1.0 and bool((weights > 0).all())
    torch.testing.assert_close(skip(t, c, torch.zeros(2, dtype=F64))[0], torch.ones(30, dtype=F64))


# ---- the surrogate and its bound


def test_the_surrogate_is_within_its_bound() -> None:
    """``|J(pi') - L_pi(pi')| <= int 2 sup|E q| TV dt``, on linear dynamics with ``r = sin(omega x + 1)``.

    All in closed form: pi is the reference, pi' adds a constant to its score. TV of the marginals, and by Pinsker.
    """
    process, omega, start, n = PROCESSES["vp"], 1.7, 0.9, 4000
    ts = torch.linspace(start, 0.0, n + 1, dtype=F64)
    ts = 0.5 * (ts[1:] + ts[:-1])  # mid-points
    h, c = start / n, process(ts)
    spread = c.alpha**2 * S0**2 + c.sigma**2  # the chain is started in its marginal, so this is its variance
    k, s2 = c.alpha * S0**2 / spread, S0**2 * c.sigma**2 / spread  # of the end given the state
    g2 = process.g2(ts)
    for push in (0.05, 0.4):
        moved = (g2 * h * push / k).flip(0).cumsum(0).flip(0)  # not yet used: shifts from the noisy side
        kappa = torch.cat([torch.zeros(1, dtype=F64), (g2 * k * h * push).cumsum(0)[:-1]]) + 0.5 * g2 * k * h * push
        shift = kappa / k  # of the state's mean at each time: d(k m) = k g^2 push dt along the flow
        wave = torch.exp(-0.5 * omega**2 * s2)

        def slope_mean(mean: Tensor, wave: Tensor = wave) -> Tensor:  # E dV/dx for x ~ N(mean, spread)
            return omega * k * wave * torch.exp(-0.5 * omega**2 * k**2 * spread) * torch.cos(omega * k * mean + 1)

        paid = 0.5 * BETA * g2 * push**2
        end, size = float((g2 * k * h * push).sum()), math.exp(-0.5 * omega**2 * S0**2)
        after = size * math.sin(omega * end + 1) - float((paid * h).sum())
        surrogate = size * math.sin(1) + float(((g2 * push * slope_mean(torch.zeros(n, dtype=F64)) - paid) * h).sum())
        exact = size * math.sin(1) + float(((g2 * push * slope_mean(shift) - paid) * h).sum())
        assert abs(after - exact) < 1e-5  # the performance difference formula
        largest = g2 * (push * omega * k * wave) + paid
        tv = torch.erf(shift / (2 * (2 * spread).sqrt()))
        pinsker = 0.5 * (g2 * h * push**2).cumsum(0).sqrt()
        assert bool((tv <= pinsker + 1e-12).all()) and moved[0] > 0
        gap, bound = abs(after - surrogate), float((2 * largest * tv * h).sum())
        assert 0 < gap <= bound <= float((2 * largest * pinsker * h).sum())


def test_the_trust_region_has_the_gradient_of_a_root_and_adapts() -> None:
    """The slope gives the gradient of ``C E sqrt(sum KL)``; the rule multiplies, divides, or leaves alone."""
    region = SquareRootKL(delta=0.3, factor=1.5, slack=0.1)
    moved = (0.3 * normal(5, 4, seed=15)).requires_grad_(True)
    kl = 0.5 * moved.square()
    (wanted,) = torch.autograd.grad(2.0 * kl.sum(1).sqrt().mean(), moved, retain_graph=True)
    surrogate = (region.slope(2.0, kl.sum(1).detach()).unsqueeze(1) * kl).sum(1).mean()
    torch.testing.assert_close(torch.autograd.grad(surrogate, moved)[0], wanted, rtol=1e-9, atol=1e-12)
    assert float(region.slope(2.0, torch.zeros(1, dtype=F64))) < float("inf")
    assert (
        region.adapt(1.0, 0.34**2) == 1.5 and region.adapt(1.0, 0.26**2) == 1 / 1.5 and region.adapt(1.0, 0.09) == 1.0
    )
    with pytest.raises(GirsanovError, match="a trust region needs delta > 0"):
        SquareRootKL(delta=0.0)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: PathKLPrice(0.0), "beta weighs the KL and must be positive"),
        (lambda: EnergyPrice(-1.0), "lam weighs the energy and must be positive"),
        (lambda: AdvantageRate(VP(), PathKLPrice(1.0), -0.1), "eta scales a standard deviation"),
        (lambda: AdvantageRate(VP(), PathKLPrice(1.0), 0.0).stiffness(0.5), "infinite: use EnergyPrice"),
        (lambda: GaussianPolicy(torch.zeros(1, 1), torch.zeros(())), "positive variance"),
        (lambda: FullSkip(0.0), "standard deviation of the data must be positive"),
        (lambda: TemperedSkip(-1.0), "standard deviation of the data must be positive"),
    ],
)
def test_bad_input_is_one_sentence(make: object, sentence: str) -> None:
    with pytest.raises(GirsanovError, match=sentence) as error:
        make()
    assert "\n" not in str(error.value)


# ---- committed defects

RATE = rate_file.AdvantageRate
DEFECTS = [
    Mutation(RATE, "__call__", "- 0.5 * self", "+ 0.5 * self", lambda: check_best("flow", 1.0)),
    Mutation(RATE, "__call__", "0.5 * self.stiffness", "self.stiffness", lambda: check_best("flow", 1.0)),
    Mutation(RATE, "__call__", "self.lever(t).to(earned) * earned", "earned", lambda: check_best("flow", 1.0)),
    Mutation(RATE, "__call__", "- trace", "", lambda: check_rate_of_policy(1.0)),
    Mutation(RATE, "lever", "0.5 *", "", lambda: check_best("vp", 0.5)),
    Mutation(RATE, "slope", "- scale", "+ scale", lambda: check_best("flow", 1.0)),
    Mutation(RATE, "slope", "scale(self.lever(t), gradient) *", "", lambda: check_stein(1.0)),
    Mutation(PathKLPrice, "rate", "(4 *", "(2 *", lambda: check_best("vp", 1.0)),
    Mutation(PathKLPrice, "rate", "process.g2(t)", "process.g2(t) ** 0", lambda: check_best("vp", 1.0)),
    Mutation(PathKLPrice, "stiffness", "** 2", "", lambda: check_increments(1.0, GDDIM(1.0))),
    Mutation(EnergyPrice, "rate", "0.25", "0.5", lambda: check_increments(0.0, Euler())),
    Mutation(EnergyPrice, "stiffness", "** 2", "", lambda: check_increments(0.0, Euler())),
    Mutation(Price, "charge", "0.5 *", "", lambda: check_increments(1.0, GDDIM(1.0))),
    Mutation(LinearScore, "slope", "0.5 * noise * P", "noise * P", lambda: check_generator(1.0)),
    Mutation(LinearScore, "slope", "- stiffness * gap**2", "+ stiffness * gap**2", lambda: check_generator(1.0)),
    Mutation(LinearScore, "derivative", "lever * value", "value", lambda: check_policy_gradient(1.0)),
    Mutation(skip_file, "open_share", "c.sigma**2 /", "c.sigma /", check_full_skip),
    Mutation(TemperedSkip, "__call__", "torch.expm1(p)", "torch.exp(p)", check_tempered_skip),
]


@mutants(DEFECTS)
def test_a_defect_is_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)
