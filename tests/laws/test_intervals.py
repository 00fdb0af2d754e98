"""Intervals: against scipy, and by how often they hold the truth."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from girsanov.errors import GirsanovError
from girsanov.evaluation import Interval, bootstrap, grouped_interval, mean_interval, share_interval, win_rate


def test_the_mean_interval_is_students() -> None:
    x = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = mean_interval(x, 0.9)
    expected = stats.ttest_1samp(x.numpy(), 0.0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.value == pytest.approx(float(x.mean())) and found.n == 12 and found.confidence == 0.9


def test_the_mean_interval_holds_the_truth_as_often_as_it_says() -> None:
    """4,000 repeats of five normal numbers at 95 %: within 4 standard errors (.0138); a normal quantile gives 88 %."""
    x = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    held = sum(i.low <= 3 <= i.high for i in map(mean_interval, x)) / 4000
    assert abs(held - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


def test_grouped_values_count_as_many_as_there_are_groups() -> None:
    """2,000 repeats, six groups of four, group spread 1, sample spread .5, at 90 %: within 4 standard errors (.027).

    Taking the 24 values for independent holds the truth in under 75 % of cases.
    """
    g = torch.Generator().manual_seed(1)
    group = torch.arange(6).repeat_interleave(4) + 10
    held, naive = 0, 0
    for _ in range(2000):
        x = torch.randn(6, 1, generator=g).expand(6, 4) + 0.5 * torch.randn(6, 4, generator=g)
        interval, flat = grouped_interval(x.flatten(), group, 0.9), mean_interval(x.flatten(), 0.9)
        held += interval.low <= 0 <= interval.high
        naive += flat.low <= 0 <= flat.high
    assert abs(held / 2000 - 0.9) < 4 * math.sqrt(0.9 * 0.1 / 2000)
    assert naive / 2000 < 0.75
    unequal = grouped_interval([1.0, 3.0, 10.0], torch.tensor([7, 7, 2]))
    assert unequal.value == 6.0 and unequal.n == 2


@pytest.mark.parametrize(("wins", "n"), [(0, 10), (3, 10), (10, 10), (50, 80)])
def test_the_share_interval_is_wilsons(wins: int, n: int) -> None:
    found, expected = share_interval(wins, n), stats.binomtest(wins, n).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.value == wins / n


def test_a_win_rate_counts_ties_half() -> None:
    found = win_rate([3.0, 1.0, 2.0, 5.0], torch.tensor([1.0, 1.0, 4.0, 0.0]))
    assert found.value == 2.5 / 4 and found == share_interval(2.5, 4)
    assert win_rate([1.0], [1.0]).value == 0.5
    a = np.arange(9.0)
    assert win_rate(a, a[::-1].copy()).value + win_rate(a[::-1].copy(), a).value == 1.0


def test_the_bootstrap_agrees_with_students_interval_and_follows_its_seed() -> None:
    """200 normal numbers: both ends within 10 % of the half-width; a median's interval holds the sample's median."""
    x = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, exact = bootstrap(x, resamples=4000), mean_interval(x)
    half = (exact.high - exact.low) / 2
    assert found.low == pytest.approx(exact.low, abs=0.1 * half) and found.high == pytest.approx(
        exact.high, abs=0.1 * half
    )
    assert bootstrap(x, seed=1) == bootstrap(x, seed=1) != bootstrap(x, seed=2)
    median = bootstrap(x, np.median)
    assert median.low < median.value < median.high
    assert median.value == float(np.median(x.numpy()))
    assert bootstrap([2.0, 2.0, 2.0]) == Interval(2.0, 2.0, 2.0, 3)


def test_an_interval_reads_well() -> None:
    assert str(Interval(0.98761, 0.9, 1.0, 10)) == "0.9876 [0.9, 1]"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: mean_interval([1.0]), "an interval needs at least 2 numbers in a row, got shape [1]"),
        (
            lambda: mean_interval([1.0, math.nan]),
            "an interval needs finite numbers: leave out or look at those that are not",
        ),
        (lambda: mean_interval([1.0, 2.0], 95), "a confidence lies between 0 and 1, not 95: 0.95 is usual"),
        (lambda: win_rate([1.0], [1.0, 2.0]), "a win rate compares pairs: 1 scores against 2"),
        (lambda: share_interval(5, 4), "5 of 4 is no share: wins lie between 0 and n"),
        (
            lambda: grouped_interval([1.0, 2.0], torch.zeros(3)),
            "3 group numbers for 2 values: give one a value",
        ),
    ],
)
def test_what_has_no_interval_is_refused(make, sentence: str) -> None:
    with pytest.raises(GirsanovError) as error:
        make()
    assert str(error.value) == sentence
