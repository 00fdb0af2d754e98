"""The finite-difference solver: exact where it should be, of its order elsewhere, monotone, and right, by simulation,
about the problems that have no closed form."""

import math

import pytest
import torch
from torch import Tensor

from girsanov.control import HJB, LQ, Axis, Environment, GridSolution, Lattice, lattice
from girsanov.control.environments import Car, DoubleWell, Pairs, Portfolio, VectorLQ
from girsanov.control.hjb import HJB as Solver
from girsanov.errors import GirsanovError
from tests.laws.mutation import Mutation, check, mutants

SPREAD = {"A": ((-1.0,),), "B": ((0.0,),), "C": (), "D": (), "M": ((0.0,),), "start_std": (1.0,)}


def spread(env: Pairs) -> VectorLQ:
    """Pair trading without the wealth, as a linear-quadratic problem in the spread."""
    weight = 1 / env.discount
    drift = {"A": ((-env.speed,),), "B": ((0.0,),), "c": (env.speed * env.level,), "s": ((env.volatility,),)}
    costs = {
        "N": ((weight * env.volatility**2,),),
        "R": ((weight * env.speed,),),
        "P": (0.0,),
        "Q": (-weight * env.c0,),
    }
    return VectorLQ(**(SPREAD | drift | costs), discount=env.discount, entropy=env.entropy)


def line(low: float, high: float, n: int) -> Lattice:
    return Lattice((Axis(low, high, n),))


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def law_of_the_line() -> None:
    """With the right values at the edge the quadratic value of LQ is exact, noise being enough everywhere."""
    env = LQ()
    known = env.solution()
    found = HJB(env, line(-1.5, 1.5, 121), known.value).solve()
    x = found.lattice.nodes
    torch.testing.assert_close(found.V, known.value(x), rtol=0, atol=1e-7)
    inner = ~found.lattice.edge
    for mine, theirs in zip(found.policy(x), known.policy(x), strict=True):
        torch.testing.assert_close(mine[inner], theirs[inner], rtol=0, atol=1e-5)
    y, a = column(-0.913, 0.21, 1.3), column(0.3, -1.0, 0.1)  # between the nodes
    torch.testing.assert_close(found.value(y), known.value(y), rtol=0, atol=1e-7)
    torch.testing.assert_close(found.gradient(y), known.gradient(y), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.q(y, a), known.q(y, a), rtol=0, atol=1e-4)


def test_a_quadratic_value_is_exact_in_one_dimension() -> None:
    law_of_the_line()


def test_pair_trading_is_solved_without_knowing_its_edges() -> None:
    """The spread of the default problem on 6 standard deviations; reflection costs 1e-4 in the middle."""
    env = Pairs(rate=0.0)
    std = env.volatility / math.sqrt(2 * env.speed)
    found = HJB(spread(env), line(env.level - 6 * std, env.level + 6 * std, 401)).solve()
    x = env.level + std * column(-2, -1, 0, 1, 2)
    full = torch.cat([x, torch.zeros_like(x)], 1)
    torch.testing.assert_close(found.value(x), env.solution().value(full), rtol=2e-4, atol=0)
    torch.testing.assert_close(found.policy(x)[0], env.solution().policy(full)[0], rtol=1e-6, atol=1e-6)


def test_pair_trading_with_its_wealth_is_solved_too() -> None:
    """One noise moves both states, and much exploration keeps that monotone: the known solution is a fixed point."""
    env = Pairs(entropy=20.0, volatility=1.0, level=0.0)
    known = env.solution()
    lattice = Lattice((Axis(-1.5, 1.5, 31), Axis(-4.5, 4.5, 31)))
    solver = HJB(env, lattice, known.value)
    found = solver.evaluate(known.policy)
    torch.testing.assert_close(found.V, known.value(lattice.nodes), rtol=1e-9, atol=1e-9)
    mean, covariance, bounded = solver.improve(found)
    inner = ~lattice.edge
    for mine, theirs in zip((mean, covariance), known.policy(lattice.nodes), strict=True):
        torch.testing.assert_close(mine[inner], theirs[inner], rtol=1e-6, atol=1e-6)
    assert bool(bounded.all())


def law_of_the_order(problem: Environment, edge: object, sizes: tuple[int, ...], at: Tensor, order: float) -> None:
    """Errors, or differences where the solution is not known, fall by 2^order (within 0.35) as the spacing halves."""
    values = [HJB(problem, line(-3, 3, n), edge).solve().value(at) for n in sizes]
    known = problem.solution()
    errors = [float((b - a).abs().max()) for a, b in zip(values, values[1:], strict=False)]
    if not isinstance(known, GridSolution):
        errors = [float((v - known.value(at)).abs().max()) for v in values]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert abs(math.log2(coarse / fine) - order) < 0.35


def law_of_order_two() -> None:
    law_of_the_order(DoubleWell(), None, (61, 121, 241, 481), column(-1, -0.5, 0, 0.5, 1), 2.0)


def law_of_order_one() -> None:
    quiet = LQ(C=0.0, D=0.05, entropy=0.01)
    law_of_the_order(quiet, quiet.solution().value, (61, 121, 241), column(-1, -0.5, 0, 0.5, 1), 1.0)


def test_the_order_is_two_where_noise_carries_central_differences() -> None:
    law_of_order_two()


def test_the_order_is_one_where_it_does_not() -> None:
    law_of_order_one()
    quiet = spread(Pairs(volatility=0.02, rate=0.0))
    law_of_the_order(quiet, quiet.solution().value, (61, 121, 241), column(-1, -0.5, 0, 0.5, 1), 1.0)


CROSSED = VectorLQ(s=((0.5, 0.2), (0.1, 0.5)), D=())


def law_of_the_plane() -> None:
    """Correlated noises in two dimensions, where the upwind axis costs accuracy: the error falls at least 2.5 times."""
    known = CROSSED.solution()
    x = torch.cartesian_prod(torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 5)).double()
    errors, start = [], None
    for n in (26, 51):
        found = HJB(CROSSED, Lattice((Axis(-4, 6, n), Axis(-5, 5, n))), known.value).solve(start)
        errors.append(float((found.value(x) - known.value(x)).abs().max()))
        start = found.policy
    assert errors[0] > 2.5 * errors[1] and errors[1] < 0.25


def test_correlated_noises_in_two_dimensions() -> None:
    law_of_the_plane()


def law_of_improvement() -> None:
    """Policy iteration: values never fall, at any node, and no jump has a negative rate."""
    solver = HJB(DoubleWell(cost=0.3), line(-3, 3, 61))
    N = len(solver.lattice.nodes)
    now = solver.evaluate(lambda x: (3 * torch.ones(N, 1), torch.eye(1).expand(N, 1, 1)))
    for _ in range(6):
        means = solver.averages(now.mean, now.covariance)
        assert all(bool((rate >= 0).all()) for _, rate in solver.rates(means))
        better = solver.evaluate(lambda x, now=now: solver.improve(now)[:2])
        assert float((better.V - now.V).min()) > -1e-9
        now = better
    torch.testing.assert_close(now.V, solver.solve().V, rtol=0, atol=1e-6)


def test_improving_a_policy_never_lowers_its_value() -> None:
    law_of_improvement()


def law_of_occupation() -> None:
    """The occupation of a policy: its mass, the exact moments (edges cost 1e-3), and the value it pays for."""
    env = LQ(start_mean=0.5, start_std=0.0)
    policy = env.solution().affine
    found = HJB(env, line(-6, 6, 241)).evaluate(env.solution().policy)
    start, x = column(0.5), found.lattice.nodes[:, 0]
    d = found.occupation(start)
    known = env.solution().evaluate(policy).occupation
    for power, moment in enumerate((known.L0, known.L1[0], known.L2[0, 0])):
        assert float((d * x**power).sum()) == pytest.approx(float(moment), abs=1e-3 if power else 1e-9)
    assert float((d * found.earned).sum()) == pytest.approx(float(found.value(start)), abs=1e-9)


def test_the_occupation_is_that_of_the_policy() -> None:
    law_of_occupation()


def simulated(env: Environment, found: GridSolution, n: int, seed: int) -> tuple[float, float]:
    """Mean and standard error of the discounted return (with entropy) of a policy, by steps of the environment."""
    g = torch.Generator().manual_seed(seed)
    x = env.start(n, g, torch.float64)
    total, weight = torch.zeros(n, dtype=torch.float64), env.dt
    while weight > 1e-3 * env.dt:
        mean, covariance = found.policy(x)
        a = mean + covariance[:, :, 0].sqrt() * torch.randn(n, 1, generator=g, dtype=torch.float64)
        entropy = (2 * math.pi * math.e * covariance[:, 0, 0]).log() / 2
        total += weight * (env.reward(x, a) + env.entropy * entropy)
        x = env.step(x, a, torch.randn(n, env.noise_dim, generator=g, dtype=torch.float64))
        weight *= math.exp(-env.discount * env.dt)
    return float(total.mean()), float(total.std() / n**0.5)


@pytest.mark.parametrize(
    "env", [DoubleWell(dt=0.02), pytest.param(Car(dt=0.02), marks=pytest.mark.slow)], ids=["double-well", "car"]
)
def test_the_reference_of_a_problem_without_closed_form_is_what_simulation_earns(env: Environment) -> None:
    """1000 copies, seed 0; 4 standard errors and 1 % for the bias of the steps."""
    found = env.solution()
    mean, error = simulated(env, found, 1000, seed=0)
    expected = float(found.value(env.start(4000, torch.Generator().manual_seed(1), torch.float64)).mean())
    assert abs(mean - expected) < 4 * error + 0.01 * abs(expected)


def test_the_best_car_swings() -> None:
    """In its valley it pushes along its velocity, also away from the target."""
    env = Car()
    found = HJB(env, env.lattice(20)).solve()
    x = torch.tensor([[-1.0, -0.6], [-1.0, 0.6]], dtype=torch.float64)
    back, forth = found.policy(x)[0][:, 0].tolist()
    assert back < -0.1 and forth > 0.4
    assert found.value(torch.tensor([[-1.0, -1.2]]))[0] > found.value(torch.tensor([[-1.0, 0.0]]))[0]


# ---- what is refused


def test_what_the_solver_cannot_do_is_refused() -> None:
    with pytest.raises(GirsanovError, match="2 states on 1 axes"):
        HJB(Pairs(), line(-1, 1, 11))
    with pytest.raises(GirsanovError, match="quadratic in the action"):
        HJB(Portfolio(), line(-1, 1, 11))
    with pytest.raises(GirsanovError, match="not monotone at .* too correlated"):
        HJB(Pairs(), Lattice((Axis(-1, 1, 11), Axis(-1, 1, 11)))).solve()
    with pytest.raises(GirsanovError, match="at least 3 points"):
        Axis(0.0, 1.0, 2)
    with pytest.raises(GirsanovError, match="at least 3 points"):
        Axis(1.0, 0.0, 5)


def test_what_is_no_policy_is_refused() -> None:
    solver = HJB(LQ(), line(-1, 1, 11))
    for mean, covariance, message in (
        (torch.zeros(11), torch.ones(11, 1, 1), "returned a mean .11. and a covariance .11, 1, 1. at 11 states"),
        (torch.zeros(11, 1), torch.zeros(11, 1, 1), "positive definite at every node"),
        (torch.full((11, 1), math.nan), torch.ones(11, 1, 1), "mean must be finite"),
    ):
        with pytest.raises(GirsanovError, match=message):
            solver.evaluate(lambda x, mean=mean, covariance=covariance: (mean, covariance))


class Free(DoubleWell):
    """A double well whose actions cost nothing."""

    def reward(self, x: Tensor, a: Tensor) -> Tensor:
        return -(x[:, 0] ** 2)


def test_actions_without_a_cost_are_refused() -> None:
    with pytest.raises(GirsanovError, match="q has no maximum in the action at .* of 11 nodes"):
        HJB(Free(), line(-1, 1, 11)).solve()


# ---- defects that the laws must notice

DEFECTS = [
    Mutation(Solver, "rates", "push = b / (2 * h)", "push = -b / (2 * h)", law_of_the_line),
    Mutation(
        Solver, "rates", "cross = S.abs() / (2 * h[:, None] * h)", "cross = S.abs() / (h[:, None] * h)", law_of_the_line
    ),
    Mutation(Solver, "rates", "yield (sign, sign * side), rate", "yield (sign, -sign * side), rate", law_of_the_plane),
    Mutation(Solver, "rates", "torch.maximum(s, push.abs())", "s + push.abs()", law_of_order_two),
    Mutation(Solver, "averages", "math.sqrt(m) *", "", lambda: law_of_two_actions()),
    Mutation(Solver, "averages", "env.entropy / 2", "env.entropy", law_of_the_line),
    Mutation(Solver, "_maximum", "/ 2 for u in units", "/ 3 for u in units", law_of_the_line),
    Mutation(Solver, "improve", "value > best", "value < best", law_of_improvement),
    Mutation(GridSolution, "occupation", "self.system.T", "self.system", law_of_occupation),
    Mutation(lattice.Lattice, "curvature", "(up - down) / self.h", "(up - down)", law_of_the_line),
]


def law_of_two_actions() -> None:
    """Two actions on one state, one of which makes noise: the averages over both are exact."""
    two = {"A": ((-1.0,),), "B": ((1.0, 0.5),), "D": (((0.0, 0.4),),), "s": ((0.5,),), "M": ((1.0,),)}
    costs = {"N": ((1.0, 0.3), (0.3, 1.0)), "P": (0.5,), "start_std": (1.0,)}
    env = VectorLQ(**two, **costs)
    known = env.solution()
    found = HJB(env, line(-1, 1, 81), known.value).solve()
    torch.testing.assert_close(found.V, known.value(found.lattice.nodes), rtol=0, atol=1e-6)


def test_two_actions() -> None:
    law_of_two_actions()


@mutants(DEFECTS)
def test_the_laws_notice_defects(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)
