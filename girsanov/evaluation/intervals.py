r"""Intervals: a number without one is not a result.

=================  ======================================================================================
mean_interval      Student's t: ``mean +- t_{n-1} s / sqrt(n)``
grouped_interval   the same over group means: samples of one prompt are not independent
bootstrap          BCa bootstrap of any statistic
win_rate           Wilson's score interval of the share of wins, ties counted half
correlation        Fisher's: ``tanh(atanh r +- z / sqrt(n - 3))``; of ranks the variance is 1.06 times that
=================  ======================================================================================

Wilson's interval with share p of n and normal quantile z:

.. math:: \frac{p + z^2/2n \pm z \sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n}

References: Wilson 1927, doi:10.1080/01621459.1927.10502953; Efron 1987, doi:10.1080/01621459.1987.10478410 (BCa);
Fieller, Hartley & Pearson 1957, doi:10.1093/biomet/44.3-4.470 (ranks).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from girsanov.errors import GirsanovError

Values = Tensor | np.ndarray | Sequence[float]


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval.

    Attributes:
        value: the estimate.
        low, high: the ends.
        n: independent observations behind it.
        confidence: the level.
    """

    value: float
    low: float
    high: float
    n: int
    confidence: float = 0.95

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def numbers(values: Values, least: int) -> np.ndarray:
    """Values as float64 [N]. Raises GirsanovError on fewer than ``least``, another shape, or what is not finite."""
    x = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < least:
        raise GirsanovError(f"an interval needs at least {least} numbers in a row, got shape {list(x.shape)}")
    if not np.isfinite(x).all():
        raise GirsanovError("an interval needs finite numbers: leave out or look at those that are not")
    return x


def _level(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise GirsanovError(f"a confidence lies between 0 and 1, not {confidence}: 0.95 is usual")
    return 0.5 * (1 + confidence)


def quantile(confidence: float) -> float:
    """How many standard errors a normal interval of this level reaches to either side."""
    from scipy import stats

    return float(stats.norm.ppf(_level(confidence)))


def mean_interval(values: Values, confidence: float = 0.95) -> Interval:
    """Student's interval of the mean of n independent values."""
    from scipy import stats

    x, level = numbers(values, 2), _level(confidence)
    half = float(stats.t.ppf(level, len(x) - 1)) * float(x.std(ddof=1)) / math.sqrt(len(x))
    mean = float(x.mean())
    return Interval(mean, mean - half, mean + half, len(x), confidence)


def grouped_interval(values: Values, group: Tensor, confidence: float = 0.95) -> Interval:
    """Student's interval of the mean over groups (prompts) of the mean within each; n counts groups."""
    x = torch.from_numpy(numbers(values, 2))
    index = group.cpu().unique(return_inverse=True)[1]
    if len(index) != len(x):
        raise GirsanovError(f"{len(index)} group numbers for {len(x)} values: give one a value")
    count = index.bincount()
    return mean_interval(torch.zeros(len(count), dtype=torch.float64).index_add_(0, index, x) / count, confidence)


def bootstrap(
    values: Values,
    statistic: Callable[[np.ndarray], float] = np.mean,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """BCa bootstrap interval of a statistic of n independent values."""
    from scipy import stats

    x = numbers(values, 3)
    _level(confidence)
    value = float(statistic(x))
    if np.ptp(x) == 0:
        return Interval(value, value, value, len(x), confidence)
    found = stats.bootstrap(
        (x,),
        statistic,
        confidence_level=confidence,
        n_resamples=resamples,
        vectorized=False,
        method="BCa",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(value, float(found.low), float(found.high), len(x), confidence)


def share_interval(wins: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's interval of a share of ``wins`` in n (half wins allowed)."""
    if not (n >= 1 and 0 <= wins <= n):
        raise GirsanovError(f"{wins} of {n} is no share: wins lie between 0 and n")
    z = quantile(confidence)
    p, w = wins / n, z * z / n
    centre = (p + w / 2) / (1 + w)
    half = math.sqrt(p * (1 - p) * w + w * w / 4) / (1 + w)
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half), n, confidence)


def win_rate(a: Values, b: Values, confidence: float = 0.95) -> Interval:
    """Share of the n pairs (same prompt, same noise) in which ``a`` scores above ``b``, ties counted half."""
    x, y = numbers(a, 1), numbers(b, 1)
    if len(x) != len(y):
        raise GirsanovError(f"a win rate compares pairs: {len(x)} scores against {len(y)}")
    return share_interval(float((x > y).sum() + 0.5 * (x == y).sum()), len(x), confidence)


def correlation_interval(a: Values, b: Values, *, ranks: bool = False, confidence: float = 0.95) -> Interval:
    """Pearson's correlation of n pairs, or Spearman's of their ranks; 0, and nothing known, where one is constant.

    Raises GirsanovError below four pairs.
    """
    from scipy import stats

    x, y = numbers(a, 4), numbers(b, 4)
    if len(x) != len(y):
        raise GirsanovError(f"a correlation is of pairs: {len(x)} numbers and {len(y)}")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return Interval(0.0, -1.0, 1.0, len(x), confidence)
    if ranks:
        x, y = stats.rankdata(x), stats.rankdata(y)
    r = float(np.clip(np.corrcoef(x, y)[0, 1], -1.0, 1.0))
    half = quantile(confidence) * math.sqrt((1.06 if ranks else 1.0) / (len(x) - 3))
    centre = math.atanh(min(max(r, -1 + 1e-15), 1 - 1e-15))
    return Interval(r, math.tanh(centre - half), math.tanh(centre + half), len(x), confidence)
