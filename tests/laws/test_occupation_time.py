"""The discounted occupation time: its samplers against the exact moments, and the performance-difference formula.

LQ with dt = 0.1 (the chain's own moments, so no error in dt is left), seed 0, 4000 paths, |z| < 4.5.
"""

import math

import pytest
import torch

from girsanov.control import LQ, AffinePolicy, LQSolution
from girsanov.control.occupation import (
    OCCUPATIONS,
    Discounted,
    Exponential,
    mass,
    occupy,
    performance_difference,
    regret,
)
from girsanov.noise import Noise
from tests.laws.control_cases import F64, OTHER, POLICY, actor, walked, z_scores

ENV = LQ(dt=0.1)
SAMPLERS = {"discounted": Discounted(12.0), "exponential": Exponential()}
Z, COPIES = 4.5, 4000


def test_every_sampler_is_tested() -> None:
    assert set(SAMPLERS) == set(OCCUPATIONS)


@pytest.mark.parametrize("name", SAMPLERS)
def test_weighted_paths_have_the_exact_moments(name: str) -> None:
    paths, w = walked(ENV, SAMPLERS[name], COPIES)
    exact, x = ENV.chain().evaluate(POLICY).occupation, paths.states[:, :, 0]
    torch.testing.assert_close(w.sum(1).mean(), exact.L0, atol=0, rtol=1e-5)
    for f, want in ((x, exact.L1[0]), (x**2, exact.L2[0, 0])):
        assert abs(float(z_scores((w * f).sum(1), want))) < Z


def test_states_at_an_exponential_time_have_the_exact_moments() -> None:
    x = occupy(ENV, actor(ENV), Noise(1, 0, torch.arange(COPIES)))[:, 0]
    exact = ENV.chain().evaluate(POLICY).occupation
    assert abs(float(z_scores(x, exact.L1[0] / exact.L0))) < Z
    assert abs(float(z_scores(x**2, exact.L2[0, 0] / exact.L0))) < Z


def test_the_mass_is_that_of_the_chain_and_of_continuous_time() -> None:
    assert mass(ENV) == pytest.approx(float(ENV.chain().evaluate(POLICY).occupation.L0), rel=1e-12)
    assert mass(LQ(dt=1e-6)) == pytest.approx(1.0, abs=1e-6)
    w = Discounted(5.0).weights(ENV, torch.zeros(2, dtype=F64))
    assert w.shape == (2, 50) and float(w[0, 1] / w[0, 0]) == pytest.approx(math.exp(-0.1), rel=1e-12)


def exact_difference(base: LQSolution, policy: AffinePolicy) -> float:
    """``int d^{pi'} E_{pi'}[q - gamma log pi']`` from the moments, by matrices."""
    new = base.evaluate(policy)
    averaged = base.problem.average(base.Q, policy)
    entropy = 0.5 * torch.logdet(2 * math.pi * math.e * policy.covariance)
    occupation = new.occupation
    return float((averaged * occupation.matrix).sum() / 2 + base.problem.entropy * entropy * occupation.L0)


@pytest.mark.parametrize("dt", [0.0, 0.1])
def test_the_performance_difference_formula_is_exact(dt: float) -> None:
    """In continuous time and for the chain, to 1e-10."""
    base = ENV.problem.at(dt).evaluate(POLICY)
    difference = base.evaluate(OTHER).objective - base.objective
    assert abs(difference) > 0.1 and exact_difference(base, OTHER) == pytest.approx(difference, abs=1e-10)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_performance_difference_is_estimated_along_the_new_policys_paths(name: str) -> None:
    base = ENV.chain().evaluate(POLICY)
    paths, w = walked(ENV, SAMPLERS[name], COPIES, OTHER)
    q = base.q(*paths.flat).view_as(w)
    found = performance_difference(ENV, q, paths.law, w)
    assert abs(float(z_scores(found, base.evaluate(OTHER).objective - base.objective))) < Z


def test_the_regret_is_the_difference_to_the_optimum() -> None:
    best = ENV.chain()
    x = occupy(ENV, actor(ENV), Noise(2, 0, torch.arange(COPIES)))
    lost = best.objective - best.evaluate(POLICY).objective
    assert lost > 0.3 and abs(float(z_scores(regret(ENV, best, actor(ENV), x), lost))) < Z
    assert float(regret(ENV, best, actor(ENV, best.affine), x).abs().max()) < 1e-12
