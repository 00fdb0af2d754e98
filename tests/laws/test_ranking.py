"""Rankings, win rates, calibration: closed forms, the equations of the maximum, the truth from simulated games."""

import itertools
import math
import sys

import numpy as np
import pytest

from girsanov.errors import GirsanovError
from girsanov.evaluation import (
    Games,
    bradley_terry,
    calibration,
    elo,
    length_controlled,
    outcome_rate,
    rank,
    ranking,
    win_rates,
)
from girsanov.evaluation.calibration import calibration_slope, sigmoid
from girsanov.evaluation.ranking import SCALE, covariance
from girsanov.evaluation.win_rates import design, fit
from tests.laws.mutation import Mutation, check, mutants

CALIBRATION = sys.modules["girsanov.evaluation.calibration"]
TRUTH = np.array([0.9, 0.1, -0.3, -0.7])
NAMES = ("w", "x", "y", "z")


def simulated(n: int, seed: int, ties: float = 0.0) -> Games:
    """n games of random pairs at the odds of TRUTH; a share of them become ties."""
    rng = np.random.default_rng(seed)
    pairs = np.array(list(itertools.combinations(range(4), 2)))[rng.integers(6, size=n)]
    won = (rng.random(n) < sigmoid(TRUTH[pairs[:, 0]] - TRUTH[pairs[:, 1]])).astype(float)
    won[rng.random(n) < ties] = 0.5
    return Games(NAMES, pairs[:, 0], pairs[:, 1], won)


def two(wins: float, games: int) -> Games:
    y = np.zeros(games)
    y[: int(wins)] = 1
    if wins % 1:
        y[int(wins)] = wins % 1
    return Games(("a", "b"), np.zeros(games, dtype=int), np.ones(games, dtype=int), y)


def law_two_models_are_apart_by_the_logit() -> None:
    """p = .7 of ten games: theta_a - theta_b = logit(.7), and the sandwich is 1 / (n p (1 - p))."""
    games = two(7, 10)
    theta = bradley_terry(games)
    np.testing.assert_allclose(theta[0] - theta[1], math.log(7 / 3), atol=1e-10)
    spread = np.array([1, -1]) @ covariance(theta, games) @ np.array([1, -1])
    np.testing.assert_allclose(spread, 10 / 9 / (10 * 0.7 * 0.3), rtol=1e-9)


def law_expected_wins_are_wins() -> None:
    """The equations of the maximum, with ties and unequal schedules: 200 games, seed 0."""
    games = simulated(200, 0, ties=0.2)
    theta = bradley_terry(games)
    expected = np.zeros(4)
    p = 1 / (1 + np.exp(theta[games.b] - theta[games.a]))
    np.add.at(expected, games.a, p)
    np.add.at(expected, games.b, 1 - p)
    np.testing.assert_allclose(expected, games.wins().sum(1), atol=1e-8)
    np.testing.assert_allclose(theta.sum(), 0, atol=1e-10)


def law_elo_hovers_about_the_maximum() -> None:
    """Elo's mean gain at the maximum of the likelihood is zero: the games, each played once from there, add up to 0."""
    games = simulated(400, 1)
    theta = bradley_terry(games)
    total = np.zeros(4)
    for g in range(400):
        one = Games(NAMES, games.a[g : g + 1], games.b[g : g + 1], games.y[g : g + 1])
        start = elo(one, k=1.0)  # from equal ratings: moves by y - 1/2
        assert start[games.a[g]] - 1000 == pytest.approx(games.y[g] - 0.5)
        gain = games.y[g] - 1 / (1 + 10 ** (SCALE * (theta[games.b[g]] - theta[games.a[g]]) / 400))
        total[games.a[g]] += gain
        total[games.b[g]] -= gain
    np.testing.assert_allclose(total, 0, atol=1e-8)
    ratings = elo(simulated(6000, 2), k=4.0, shuffles=4)
    np.testing.assert_allclose((ratings - 1000) / SCALE, TRUTH, atol=0.15)


def law_probabilities_at_their_exact_value_are_calibrated() -> None:
    """4,000 pairs whose labels are drawn from the model, seed 0: |z| < 4, the slope within 4 standard errors of 1.

    A model whose gaps are twice too large is noticed by both: its slope is 1/2.
    """
    rng = np.random.default_rng(0)
    gap = rng.normal(size=4000) * 1.5
    flip = np.where(rng.random(4000) < 1 / (1 + np.exp(-gap)), 1.0, -1.0)
    exact = calibration(gap * flip, np.zeros(4000))
    assert abs(exact.z) < 4 and exact.slope is not None
    error = (exact.slope.high - exact.slope.value) / 1.959964
    assert abs(exact.slope.value - 1) < 4 * error and 0.02 < error < 0.06
    assert exact.error < 3 * exact.chance
    loud = calibration(2 * gap * flip, np.zeros(4000))
    assert loud.z < -8 or loud.z > 8
    assert loud.slope is not None and loud.slope.value == pytest.approx(exact.slope.value / 2, rel=1e-8)
    assert loud.error > 5 * loud.chance and loud.accuracy == exact.accuracy


def law_length_is_taken_out() -> None:
    """Outcomes drawn from theta = .4, phi = 1.2 with longer answers, 4,000 prompts, seed 3: both within 4 errors.

    The win rate is far above what is left at equal length, sigma(.4) = .599.
    """
    rng = np.random.default_rng(3)
    gap = rng.normal(30, 40, size=4000)
    columns = design(gap)
    y = (rng.random(4000) < sigmoid(columns @ np.array([0.4, 1.2]))).astype(float)
    found = fit(columns, y, 0.01)
    p = sigmoid(columns @ found)
    error = np.sqrt(np.diag(np.linalg.inv((columns * (p * (1 - p))[:, None]).T @ columns)))
    assert (np.abs(found - [0.4, 1.2]) < 4 * error).all() and (error < 0.08).all()
    few = slice(0, 300)
    controlled = length_controlled(y[few], gap[few], np.zeros(300), resamples=60)
    np.testing.assert_allclose(controlled.rate.value, sigmoid(fit(design(gap[few]), y[few], 0.01)[0]), rtol=1e-9)
    assert controlled.rate.low < 0.599 < controlled.rate.high < y[few].mean() + 0.05
    assert controlled.length.low > 0


def law_score_equations_of_the_length_fit() -> None:
    """At the maximum the residuals are orthogonal to the columns (ridge 0 but for the 1e-9 that keeps it regular)."""
    rng = np.random.default_rng(4)
    columns = design(rng.normal(size=200), rng.normal(size=200))
    y = rng.integers(3, size=200) / 2
    found = fit(columns, y, 0.0)
    np.testing.assert_allclose(columns.T @ (y - sigmoid(columns @ found)), 0, atol=1e-7)


LAWS = [v for k, v in dict(globals()).items() if k.startswith("law_")]


@pytest.mark.parametrize("law", LAWS, ids=lambda f: f.__name__)
def test_laws(law) -> None:
    law()


def test_the_truth_comes_back_within_its_errors() -> None:
    """20 tournaments of 300 games with one in five a tie, seeds 0-19: mean squared z of the differences within 4
    standard errors of 1 (ties at random shrink the odds, so without them here: ties = 0); three contrasts each."""
    z = []
    for seed in range(20):
        games = simulated(300, seed)
        theta = bradley_terry(games)
        v = covariance(theta, games)
        for i in range(1, 4):
            c = np.zeros(4)
            c[0], c[i] = 1, -1
            z.append(c @ (theta - TRUTH) / math.sqrt(c @ v @ c))
    assert abs(np.mean(np.square(z)) - 1) < 4 * math.sqrt(2 / 20)


def test_games_of_one_prompt_are_one_observation() -> None:
    """Every game twice under one prompt: the same ratings and the same intervals; as games of their own, narrower."""
    games = simulated(120, 5)
    twice = [np.concatenate([c, c]) for c in (games.a, games.b, games.y)]
    prompts = np.concatenate([np.arange(120)] * 2)
    once, clustered, naive = rank(games), rank(Games(NAMES, *twice, prompts)), rank(Games(NAMES, *twice))
    for r, c, n in zip(once.ratings, clustered.ratings, naive.ratings, strict=True):
        assert (c.value, c.low) == pytest.approx((r.value, r.low)) and n.high - n.low < 0.75 * (r.high - r.low)
    assert once.names[0] == "w" and "w" in once.table().splitlines()[1]


def test_ratings_that_are_not_finite_are_told_by_name() -> None:
    games = Games.of(["a", "a", "b", "c"], ["b", "c", "c", "b"], [1, 1, 1, 1])
    with pytest.raises(GirsanovError, match=r"^a never lost to the others, so the ratings have no finite best fit"):
        rank(games)
    theta = bradley_terry(games, prior=0.1)
    assert theta[0] > theta[1] == pytest.approx(theta[2])
    apart = Games.of(["a", "b", "c", "d"], ["b", "a", "d", "c"], [1, 1, 1, 1])
    with pytest.raises(GirsanovError, match="never met the others"):
        rank(apart)
    cycle = Games.of(["a", "b", "c"], ["b", "c", "a"], [1, 1, 1])
    np.testing.assert_allclose(bradley_terry(cycle), 0, atol=1e-10)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Games.of(["a"], ["b"], [1.5]), "the outcome of game 0 is 1.5: 1 is a win of a, 0.5 a tie, 0 a loss"),
        (lambda: Games.of(["a"], ["b"], [math.nan]), "the outcome of game 0 is nan"),
        (lambda: Games.of(["a", "b"], ["b", "b"], [1, 1]), "game 1 sets b against itself"),
        (lambda: Games.of([], [], []), "a ranking needs two models and a game between them"),
        (lambda: bradley_terry(two(5, 10), prior=-1.0), "the weight of the prior must be at least 0"),
        (lambda: elo(two(5, 10), k=0.0), "k must be positive"),
        (lambda: outcome_rate([0.5, 2.0]), "outcome 1 is 2"),
        (lambda: outcome_rate([1.0, 0.0], [0.0]), "1 prompts for 2 outcomes"),
        (lambda: length_controlled([1.0, 0.0, 1.0], [1.0, 2.0], [1.0, 2.0]), "needs at least 3 numbers"),
        (lambda: calibration([1.0, 2.0], [0.0, 0.0, 0.0]), "2 scores of preferred items and 3 of others"),
        (lambda: calibration([math.nan, 2.0], [0.0, 0.0]), "finite numbers"),
        (lambda: calibration_slope(np.array([-1.0, -2.0])), "the labels look flipped"),
    ],
)
def test_bad_input_is_one_sentence(make, said) -> None:
    with pytest.raises(GirsanovError) as error:
        make()
    assert said in str(error.value)


def test_win_rates_count_prompts_and_know_certainty_when_they_see_it() -> None:
    assert outcome_rate([1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]).value == 0.5
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=400) / 2
    found = outcome_rate(y)
    half = 1.96 * y.std(ddof=1) / 20
    assert found.value == y.mean() and found.high - found.value == pytest.approx(half, rel=0.1)
    sure = outcome_rate([1.0] * 30)
    assert sure.value == 1.0 and 0.85 < sure.low < 0.9  # Wilson's, not [1, 1]


def test_length_controlled_with_equal_lengths_is_the_win_rate() -> None:
    y = np.array([1.0, 1.0, 0.5, 0.0, 1.0, 0.0, 1.0, 1.0])
    found = length_controlled(y, np.full(8, 9.0), np.full(8, 9.0), resamples=50)
    assert found.rate.value == pytest.approx(y.mean(), abs=1e-6) and found.length.value == 0


def test_where_length_decides_everything_nothing_is_left() -> None:
    gap = np.linspace(-50, 50, 40)
    found = length_controlled((gap > 0).astype(float), gap, np.zeros(40), resamples=30)
    assert found.rate.value == pytest.approx(0.5, abs=0.01) and found.length.value > 5


def test_a_model_that_is_always_right_has_no_slope() -> None:
    found = calibration([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    assert found.slope is None and found.accuracy.value == 1.0
    assert found.rows()["slope (1 is calibrated)"] == "none: every pair is right"
    ties = calibration([1.0, 1.0], [1.0, 1.0])
    assert ties.accuracy.value == 0.5 and ties.z == 0.0 and ties.log_loss.value == pytest.approx(math.log(2))


MUTATIONS = [
    Mutation(
        ranking, "_objective", "np.logaddexp(0, -gap)", "np.logaddexp(0, gap)", law_two_models_are_apart_by_the_logit
    ),
    Mutation(ranking, "_derivatives", "p - games.y", "games.y - p", law_expected_wins_are_wins),
    Mutation(ranking, "covariance", "@ inverse * (", "* (", law_two_models_are_apart_by_the_logit),
    Mutation(ranking, "elo", "rating[b] - rating[a]", "rating[a] - rating[b]", law_elo_hovers_about_the_maximum),
    Mutation(
        CALIBRATION,
        "calibration",
        "(1 - p) @ (1 - 2 * p)",
        "p @ (1 - 2 * p)",
        law_probabilities_at_their_exact_value_are_calibrated,
    ),
    Mutation(
        CALIBRATION,
        "calibration_slope",
        "sigmoid(b * gap) * sigmoid(-b * gap)",
        "sigmoid(b * gap)",
        law_probabilities_at_their_exact_value_are_calibrated,
    ),
    Mutation(win_rates, "length_controlled", "neutral[:, 1] = 0.0", "neutral[:, 0] = 0.0", law_length_is_taken_out),
    Mutation(win_rates, "fit", "(y - p)", "(p - y)", law_score_equations_of_the_length_fit),
]


@mutants(MUTATIONS)
def test_mutations_are_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)
