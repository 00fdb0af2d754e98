"""Linear-quadratic control: values, q, occupation and policy gradients.

They are held against the scalar closed forms, moment recursions, a Riccati solver of scipy, finite differences and the
performance-difference identity.
"""

import dataclasses
import math
import re

import pytest
import torch
from scipy.linalg import solve_continuous_are
from torch import Tensor

from girsanov.control import LQ, AffinePolicy, LinearQuadratic, LQSolution, linear_quadratic
from girsanov.control.affine import symmetric
from girsanov.control.environments import VectorLQ
from girsanov.errors import GirsanovError
from tests.laws.mutation import Mutation, check, mutants

TEN = (-0.448855474277476, 0.016226523885390, 0.742078892637444)  # k2, k1, k0 at LQ's defaults
BEST = (-0.518329194147724, -0.813394975318012, 0.040835402926138)  # slope, offset, variance
POLICIES = [(-0.3, 0.2, 0.5), (0.1, -1.0, 0.1), (-0.9, 0.0, 1.5), BEST]
SCALAR = [
    LQ(start_mean=0.3, start_std=0.7),
    LQ(A=0.2, B=1.5, C=-0.3, D=0.4, M=1.0, N=3.0, R=-0.5, P=-1.0, Q=0.3, discount=1.7, entropy=0.3, dt=0.01),
]


def wide() -> VectorLQ:
    """Three states, two actions, three noises, everything full."""
    g = torch.Generator().manual_seed(5)
    rows = lambda *shape, scale=1.0: (scale * torch.randn(*shape, generator=g, dtype=torch.float64)).tolist()  # noqa: E731
    M, N = (torch.tensor(rows(k, k, scale=0.4), dtype=torch.float64) for k in (3, 2))
    drift = {"A": rows(3, 3, scale=0.7), "B": rows(3, 2), "c": rows(3)}
    noise = {"C": rows(3, 3, 3, scale=0.2), "D": rows(3, 3, 2, scale=0.3), "s": rows(3, 3, scale=0.5)}
    costs = {"R": rows(2, 3, scale=0.3), "P": rows(3), "Q": rows(2)}
    squares = {"M": (M @ M.T + torch.eye(3)).tolist(), "N": (N @ N.T + torch.eye(2)).tolist()}
    start = {"start_mean": rows(3), "start_std": (0.5, 1.0, 0.2)}
    tuples = lambda v: tuple(tuples(w) for w in v) if isinstance(v, list) else v  # noqa: E731
    every = drift | noise | costs | squares | start
    return VectorLQ(**{k: tuples(v) for k, v in every.items()}, discount=2.5, entropy=0.2, dt=0.02)


PROBLEMS: dict[str, LinearQuadratic] = {
    "scalar": SCALAR[0].problem,
    "scalar chain": SCALAR[0].problem.at(0.05),
    "oscillator": VectorLQ().problem,
    "wide": wide().problem,
    "wide chain": wide().problem.at(0.02),
}


def near(problem: LinearQuadratic, seed: int = 0, size: float = 0.05) -> AffinePolicy:
    """A policy near the best one."""
    g = torch.Generator().manual_seed(seed)
    best = problem.optimum().affine
    draw = lambda like: size * torch.randn(like.shape, generator=g, dtype=torch.float64)  # noqa: E731
    wider = best.covariance + draw(best.covariance) @ draw(best.covariance) + 0.1 * best.covariance
    return AffinePolicy(best.slope + draw(best.slope), best.offset + draw(best.offset), symmetric(wider))


def closed(env: LQ, th1: float, th2: float, S: float) -> dict[str, float]:
    """The scalar closed forms of the value, the occupation and the gradient of ``N(th1 x + th2, S)``."""
    A, B, C, D, M, N, R, P, Q = (getattr(env, k) for k in "ABCDMNRPQ")
    beta, gamma = env.discount, env.entropy
    mean, second = env.start_mean, env.start_mean**2 + env.start_std**2
    v2 = (-M / 2 - R * th1 - N * th1**2 / 2) / (beta / 2 - (A + B * th1) - (C + D * th1) ** 2 / 2)
    v1 = -R * th2 - N * th1 * th2 - P - Q * th1 + B * th2 * v2 + (C + D * th1) * D * th2 * v2
    v1 /= beta - (A + B * th1)
    v0 = -N * (th2**2 + S) / 2 - Q * th2 + B * th2 * v1 + D**2 * (th2**2 + S) * v2 / 2
    v0 = (v0 + gamma / 2 * math.log(2 * math.pi * math.e * S)) / beta
    L0 = 1 / beta
    L1 = (mean + B * th2 / beta) / (beta - (A + B * th1))
    L2 = second + 2 * B * th2 * L1 + 2 * (C + D * th1) * D * th2 * L1 + D**2 * (th2**2 + S) / beta
    L2 /= beta - 2 * (A + B * th1) - (C + D * th1) ** 2
    g1 = -R - N * th1 + B * v2 + (C + D * th1) * D * v2  # slope of q in the action at the policy's mean
    g0 = -N * th2 - Q + B * v1 + D**2 * th2 * v2
    slopes = {"d1": g0 * L1 + g1 * L2, "d2": g0 * L0 + g1 * L1, "dS": ((D**2 * v2 - N) / 2 + gamma / (2 * S)) * L0}
    return {"v2": v2, "v1": v1, "v0": v0, "L0": L0, "L1": L1, "L2": L2} | slopes


# ---- one state, one action


def law_of_the_reference() -> None:
    """The numbers of the reference problem, to 1e-12."""
    solution = LQ().solution()
    expected = torch.tensor([[TEN[0], TEN[1]], [TEN[1], 2 * TEN[2]]], dtype=torch.float64)
    torch.testing.assert_close(solution.V, expected, rtol=0, atol=1e-12)
    found = torch.cat([solution.affine.slope[0], solution.affine.offset, solution.affine.covariance[0]])
    torch.testing.assert_close(found, torch.tensor(BEST, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_reference_problem_has_the_reference_solution() -> None:
    law_of_the_reference()


def law_of_the_closed_forms() -> None:
    """Value, occupation and gradient of any admissible policy, to 1e-9."""
    for env in SCALAR:
        for policy in POLICIES:
            found, known = env.solution().evaluate(AffinePolicy.scalar(*policy)), closed(env, *policy)
            V, L, d = found.V, found.occupation, found.policy_gradient
            pairs = [(V[0, 0], "v2"), (V[0, 1], "v1"), (V[1, 1] / 2, "v0"), (L.L0, "L0"), (L.L1, "L1"), (L.L2, "L2")]
            pairs += [(d.slope, "d1"), (d.offset, "d2"), (d.covariance, "dS")]
            for value, name in pairs:
                assert float(value) == pytest.approx(known[name], rel=1e-9, abs=1e-9), name


def test_any_policy_has_the_closed_forms() -> None:
    law_of_the_closed_forms()


def law_of_the_chain_by_recursion() -> None:
    """The value of the chain, summed over its steps from the recursion of the first two moments, to 1e-10."""
    for env in SCALAR:
        h, delta = env.dt, math.exp(-env.discount * env.dt)
        for th1, th2, S in POLICIES:
            x, xx, total, mass = env.start_mean, env.start_mean**2 + env.start_std**2, 0.0, torch.zeros(3)
            mass, weight = mass.double(), h
            entropy = math.log(2 * math.pi * math.e * S) / 2
            while weight * (1 + xx) > 1e-14:
                a, xa, aa = th1 * x + th2, th1 * xx + th2 * x, th1**2 * xx + 2 * th1 * th2 * x + th2**2 + S
                r = -(env.M * xx / 2 + env.R * xa + env.N * aa / 2 + env.P * x + env.Q * a)
                total += weight * (r + env.entropy * entropy)
                mass += weight * torch.tensor([1.0, x, xx], dtype=torch.float64)
                drift = env.A**2 * xx + 2 * env.A * env.B * xa + env.B**2 * aa
                noise = env.C**2 * xx + 2 * env.C * env.D * xa + env.D**2 * aa
                x, xx = x + h * (env.A * x + env.B * a), xx + h * (2 * (env.A * xx + env.B * xa) + noise) + h**2 * drift
                weight *= delta
            found = env.chain().evaluate(AffinePolicy.scalar(th1, th2, S))
            L = found.occupation
            assert found.objective == pytest.approx(total, rel=1e-10, abs=1e-10)
            torch.testing.assert_close(torch.stack([L.L0, L.L1[0], L.L2[0, 0]]), mass, rtol=1e-10, atol=1e-10)


def test_the_value_of_the_chain_is_the_sum_over_its_steps() -> None:
    law_of_the_chain_by_recursion()


# ---- any dimension


def law_of_the_difference(name: str) -> None:
    """``eta(pi') - eta(pi) = int d' E_pi' [q - gamma log pi']``, from the moments of d', to 1e-9."""
    problem = PROBLEMS[name]
    old, new = (problem.evaluate(near(problem, seed)) for seed in (1, 2))
    Y, policy = new.occupation.matrix, new.affine
    T = problem.lift(policy)
    Z = T @ Y @ T.T  # int d' E z z'
    Z[problem.n + 1 :, problem.n + 1 :] += policy.covariance * Y[-1, -1]
    entropy = torch.logdet(2 * math.pi * math.e * policy.covariance) / 2
    gained = float((old.Q * Z).sum() / 2 + problem.entropy * entropy * Y[-1, -1])
    assert new.objective - old.objective == pytest.approx(gained, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_performance_difference_is_q_over_the_other_occupation(name: str) -> None:
    law_of_the_difference(name)


def law_of_the_gradient(name: str) -> None:
    """The policy gradient by finite differences extrapolated to order h^4."""
    problem = PROBLEMS[name]
    at = near(problem)
    found = problem.evaluate(at).policy_gradient
    for field in ("slope", "offset", "covariance"):
        values = getattr(at, field)
        for place in torch.cartesian_prod(*(torch.arange(k) for k in values.shape)).reshape(-1, values.ndim).tolist():
            step = torch.zeros_like(values)
            step[tuple(place)] = 1
            step = symmetric(step) if field == "covariance" else step

            def slope(h: float, field: str = field, values: Tensor = values, step: Tensor = step) -> float:
                ends = (dataclasses.replace(at, **{field: values + sign * h * step}) for sign in (1, -1))
                up, down = (problem.evaluate(end).objective for end in ends)
                return (up - down) / (2 * h)

            numeric = (4 * slope(1e-4) - slope(2e-4)) / 3
            assert float((getattr(found, field) * step).sum()) == pytest.approx(numeric, rel=1e-6, abs=1e-7), field


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_policy_gradient_is_the_derivative(name: str) -> None:
    law_of_the_gradient(name)


def law_of_the_riccati_equation() -> None:
    """The residual of the generalised Riccati equation, written out, to 1e-12."""
    env = wide()
    t = {name: env._tensor(name, shape) for name, shape in env._shapes.items()}
    K, A, B, C, D = env.solution().V[:3, :3], t["A"], t["B"], t["C"], t["D"]
    S = B.T @ K + sum(D[j].T @ K @ C[j] for j in range(3)) - t["R"]
    cost = t["N"] - sum(D[j].T @ K @ D[j] for j in range(3))
    rest = -t["M"] + A.T @ K + K @ A + sum(C[j].T @ K @ C[j] for j in range(3)) + S.T @ torch.linalg.solve(cost, S)
    torch.testing.assert_close(env.discount * K, rest, rtol=0, atol=1e-12)
    torch.testing.assert_close(env.solution().affine.slope, torch.linalg.solve(cost, S), rtol=0, atol=1e-12)


def test_the_optimum_solves_the_generalised_riccati_equation() -> None:
    law_of_the_riccati_equation()


def test_without_noise_on_state_and_action_it_is_the_riccati_equation_of_scipy() -> None:
    env = wide()
    plain = dataclasses.replace(env, C=(), D=())
    t = {name: plain._tensor(name, shape) for name, shape in plain._shapes.items()}
    shifted = (t["A"] - plain.discount / 2 * torch.eye(3)).numpy()
    known = solve_continuous_are(shifted, t["B"].numpy(), t["M"].numpy(), t["N"].numpy(), s=t["R"].T.numpy())
    torch.testing.assert_close(plain.solution().V[:3, :3], -torch.from_numpy(known), rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", PROBLEMS)
def test_no_policy_is_better_than_the_best(name: str) -> None:
    """5 policies near it, seeds 0 to 4; and the gradient is zero there."""
    best = PROBLEMS[name].optimum()
    for seed in range(5):
        assert best.evaluate(near(PROBLEMS[name], seed)).objective < best.objective
    for slope in dataclasses.astuple(best.policy_gradient):
        assert float(torch.as_tensor(slope).abs().max()) < 1e-9


def test_an_unstable_system_is_solved_where_feedback_can_hold_it() -> None:
    """Doing nothing has no value here (growth 4 against a discount of 1), the optimum has one."""
    env = LQ(A=2.0, B=3.0, C=0.2, D=0.1)
    nothing = AffinePolicy.scalar(0.0, 0.0, 1.0)
    assert env.problem.growth(nothing) > 0
    K = float(env.solution().V[0, 0])
    slope = (K * (3 + 0.02) - 1) / (2 - K * 0.01)
    assert float(env.solution().affine.slope) == pytest.approx(slope, rel=1e-12)
    left = K / 2
    right = -1 + 2 * K + 0.04 * K / 2 + (K * 3.02 - 1) ** 2 / (2 * (2 - K * 0.01))
    assert left == pytest.approx(right, rel=1e-11)


# ---- what has no value

REFUSED = {
    "an unstable closed loop": (
        AffinePolicy.scalar(3.0, 0.0, 1.0),
        "grows at rate 10.61, which must be below the discount 1",
    ),
    "a negative variance": (AffinePolicy.scalar(0.0, 0.0, -1.0), "must be symmetric and positive definite"),
    "another size": (
        AffinePolicy(torch.zeros(1, 2), torch.zeros(1), torch.eye(1)),
        "does not fit a problem with 1 states and 1 actions",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_policy_without_a_value_is_refused_with_the_condition(name: str) -> None:
    policy, message = REFUSED[name]
    with pytest.raises(GirsanovError, match=re.escape(message)):
        LQ().solution().evaluate(policy)


def law_of_the_border() -> None:
    """Policies just inside ``2 (A + B th) + (C + D th)^2 < beta`` have a value, those just outside have none."""
    problem = LQ().problem
    edge = (-1.2 + math.sqrt(1.2**2 + 4 * 2.99)) / 2  # (.1 + th)^2 + 2 (-1 + .5 th) = 1
    problem.evaluate(AffinePolicy.scalar(edge - 1e-6, 0.0, 1.0))
    try:
        problem.evaluate(AffinePolicy.scalar(edge + 1e-6, 0.0, 1.0))
    except GirsanovError:
        return
    raise AssertionError("a policy beyond the border was given a value")


def test_the_border_of_the_admissible_policies_is_where_it_should_be() -> None:
    law_of_the_border()


# ---- defects that the laws must notice

P = linear_quadratic.LinearQuadratic
DEFECTS = [
    Mutation(P, "generator", "delta * out", "out", law_of_the_chain_by_recursion),
    Mutation(P, "generator", "self.dt * self.drift.T", "self.drift.T", law_of_the_reference),
    Mutation(P, "generator", "rate * V", "2 * rate * V", law_of_the_closed_forms),
    Mutation(P, "evaluate", "math.pi * math.e", "math.pi", law_of_the_closed_forms),
    Mutation(
        P,
        "average",
        "(Q[..., self.n + 1 :, self.n + 1 :] * policy.covariance).sum((-1, -2))",
        "0",
        law_of_the_closed_forms,
    ),
    Mutation(P, "improve", "self.entropy *", "2 * self.entropy *", law_of_the_reference),
    Mutation(P, "improve", "Q[n + 1 :, : n + 1]", "2 * Q[n + 1 :, : n + 1]", law_of_the_riccati_equation),
    Mutation(P, "growth", "eigenvalues.real.max()", "eigenvalues.real.min()", law_of_the_border),
    Mutation(LQSolution, "policy_gradient", "* Y[n, n] / 2", "* Y[n, n]", lambda: law_of_the_gradient("scalar")),
    Mutation(LQSolution, "policy_gradient", "rows[:, n]", "rows[:, n] * 0.9", lambda: law_of_the_gradient("wide")),
    Mutation(LQSolution, "occupation", "operator(self.affine).T", "operator(self.affine)", law_of_the_closed_forms),
]


@mutants(DEFECTS)
def test_the_laws_notice_defects(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)
