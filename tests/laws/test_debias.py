"""Taking verbosity out of ratings: the rank correlation vanishes, and its price is the regression slope."""

import math
import sys

import numpy as np
import pytest
import torch

from girsanov.errors import GirsanovError
from girsanov.evaluation.intervals import correlation_interval
from girsanov.reward_models.debias import price, spearman
from girsanov.reward_models.gated import Gated
from girsanov.reward_models.objectives import Rated, fit_objectives
from girsanov.reward_models.scorers import Members
from tests.laws.mutation import Mutation, check, mutants

DEBIAS, OBJECTIVES, INTERVALS = (
    sys.modules[f"girsanov.{n}"] for n in ("reward_models.debias", "reward_models.objectives", "evaluation.intervals")
)


def draws(n: int, seed: int, slope: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Ratings ``slope v + e`` and verbosities v, both standard normal."""
    v, e = np.random.default_rng(seed).standard_normal((2, n))
    return slope * v + e, v


def law_the_rank_correlation_vanishes() -> None:
    """The bound of the docstring, 6 / (n (n + 1)), for six sizes, also for heavy tails and a rating that falls."""
    for seed, n in enumerate((3, 4, 7, 20, 101, 800)):
        r, v = draws(n, seed)
        for rating, verbosity in ((r, v), (-r, v), (r**3, np.exp(2 * v)), (r, -v)):
            lam = price(rating, verbosity)
            assert abs(spearman(rating - lam * verbosity, verbosity)) <= 6 / (n * (n + 1)) * (1 + 1e-9)
    assert spearman(*draws(800, 5)) > 0.4  # there was something to take out


def law_the_price_is_the_slope_on_a_normal_law() -> None:
    """20,000 draws at slope .7: the standard error of the rank estimate is below 1.1 / sqrt(n); within 4 of them."""
    r, v = draws(20000, 9)
    assert abs(price(r, v) - 0.7) < 4 * 1.1 / math.sqrt(20000)
    v[:20] = 500.0  # twenty absurd lengths
    assert abs(price(r, v) - 0.7) < 0.1 < abs(np.cov(r, v)[0, 1] / v.var() - 0.7)


def law_rho_falls_in_lambda() -> None:
    """On a grid that holds every crossing of 12 answers: never up, from 1 to -1."""
    r, v = draws(12, 3)
    i, j = np.triu_indices(12, 1)
    grid = np.sort((r[i] - r[j]) / (v[i] - v[j]))
    rho = [spearman(r - lam * v, v) for lam in [grid[0] - 1, *(grid[1:] + grid[:-1]) / 2, grid[-1] + 1]]
    assert rho[0] == pytest.approx(1.0) and rho[-1] == pytest.approx(-1.0) and bool((np.diff(rho) < 1e-12).all())


def heads(debias: str, n: int = 300) -> tuple[Gated, tuple, Rated]:
    g = torch.Generator().manual_seed(4)
    phi = torch.randn(n, 5, generator=g, dtype=torch.float64)
    w = torch.randn(5, 3, generator=g, dtype=torch.float64)
    w[:, 0] += 2 * w[:, 2]
    ratings = phi @ w + 0.1 * torch.randn(n, 3, generator=g, dtype=torch.float64) + 1.5
    data = Rated(phi, ratings, torch.arange(n) % 5 == 0)
    gate = Gated(5, 2, 3, 0).double()
    return gate, fit_objectives(Members([gate]), data, ("helpful", "correct", "verbosity"), debias), data


def law_debiased_heads_are_linear_and_uncorrelated() -> None:
    """By the objective that stands for verbosity, and by the last feature: recomputed from the features alone."""
    plain, _, _ = heads(None)  # type: ignore[arg-type]
    for debias in ("verbosity", "length"):
        gate, found, data = heads(debias)
        phi = data.phi[~data.held_out]
        before = plain.ratings(phi)
        verbosity = before[:, 2] if debias == "verbosity" else phi[:, -1]
        for j, o in enumerate(found):
            assert o.lam is not None and o.correlation is not None and o.correlation.value > 0.9
            torch.testing.assert_close(gate.ratings(phi)[:, j], before[:, j] - o.lam * verbosity)
            assert abs(spearman(gate.ratings(phi)[:, j].numpy(), verbosity.numpy())) < 1e-3
            assert o.before == pytest.approx(spearman(before[:, j].numpy(), verbosity.numpy()))
        assert debias == "length" or abs(found[0].before or 0.0) > 0.3
        assert debias == "length" or (found[2].lam == 1.0 and float(gate.weight[:, 2].abs().max()) == 0.0)


def law_intervals_of_correlations_cover() -> None:
    """1,000 samples of 40 normal pairs at rho = .6, seed 0: 95 % cover it, within 4 binomial errors; ranks likewise."""
    rng, rho = np.random.default_rng(0), 0.6
    for ranks, truth in ((False, rho), (True, 6 / math.pi * math.asin(rho / 2))):
        hits = 0
        for _ in range(1000):
            x, e = rng.standard_normal((2, 40))
            found = correlation_interval(x, rho * x + math.sqrt(1 - rho**2) * e, ranks=ranks)
            hits += found.low <= truth <= found.high
        assert abs(hits / 1000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 1000) + 0.01


LAWS = [v for k, v in dict(globals()).items() if k.startswith("law_")]


@pytest.mark.parametrize("law", LAWS, ids=lambda f: f.__name__)
def test_laws(law) -> None:
    law()


def test_bad_input_is_one_sentence() -> None:
    r, v = draws(5, 0)
    for make, said in (
        (lambda: price(r, np.ones(5)), "equally verbose"),
        (lambda: price(r[:2], v[:2]), "three answers or more"),
        (lambda: price(r * math.nan, v), "not finite"),
        (lambda: heads("verbose"), "did you mean verbosity?"),
        (lambda: correlation_interval(r[:3], v[:3]), "at least 4 numbers"),
        (lambda: correlation_interval(r, v[:4]), "a correlation is of pairs"),
    ):
        with pytest.raises(GirsanovError) as error:
            make()
        assert said in str(error.value)
    assert price(np.ones(5), v) == 0.0
    assert correlation_interval(np.ones(5), v).low == -1.0
    assert correlation_interval(v, v).value == pytest.approx(1.0)


BEST = "return min((low, high), key=lambda lam: abs(rho(lam)))"
HEADS = law_debiased_heads_are_linear_and_uncorrelated
COVER = law_intervals_of_correlations_cover
MUTATIONS = [
    Mutation(DEBIAS, "price", "if rho(middle) > 0", "if rho(middle) > 0.2", law_the_rank_correlation_vanishes),
    Mutation(DEBIAS, "price", BEST, "return 0.9 * low", law_the_price_is_the_slope_on_a_normal_law),
    Mutation(OBJECTIVES, "taken_out", "g.subtract(torch", "g.subtract(-torch", HEADS),
    Mutation(Gated, "subtract", "self.bias -=", "self.bias +=", HEADS),
    Mutation(INTERVALS, "correlation_interval", "math.sqrt((1.06", "0.5 * math.sqrt((1.06", COVER),
]


@mutants(MUTATIONS)
def test_mutations_are_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)
