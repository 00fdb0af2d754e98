r"""Taking length out of ratings: what an objective shares with verbosity is subtracted until their ranks do not agree.

Raters like long answers, whatever they are asked. With r_i the predicted rating of objective i and v the predicted
verbosity (or the logarithm of the length), on a reference set of n answers,

.. math:: r_i' = r_i - \lambda_i v, \qquad \lambda_i: \; \mathrm{Spearman}(r_i', v) = 0 .

*There is one crossing.* Take two answers with v_a > v_b. As lambda grows, ``r'_a - r'_b`` falls, so the pair can only
turn from agreement to disagreement, at ``lambda = (r_a - r_b) / (v_a - v_b)``. A turn swaps two neighbours in the
ranks of r', which lowers the sum of rank products, hence Spearman's rho, by ``12 d / (n (n^2 - 1))`` with d the
difference of their ranks in v, 1 <= d <= n - 1. So rho falls in steps from 1 (lambda -> -inf) to -1, and bisection
finds the step that crosses 0; the better of its two sides has ``|rho| <= 6 / (n (n + 1))`` where no three lines meet.

*What it is in the limit.* On a normal law Spearman's rho is 0 where the covariance is, so lambda is the slope of the
regression of r_i on v. Ranks make it robust: a few very long answers do not move it.

Predicted ratings are linear in the features, and so are de-biased ones: ``W_i' = W_i - lambda_i w_v``. The verbosity
objective itself has lambda = 1 and becomes 0: it leaves the mixture.

Reference: Wang et al. 2024, arXiv:2406.12845, section 3.2 (the rule; the reference set there is UltraFeedback).
"""

from collections.abc import Callable

import numpy as np

from girsanov.errors import GirsanovError

STEPS = 200


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """The correlation of ranks, ties at their mean rank; 0 where either is constant."""
    from scipy.stats import rankdata

    x, y = (rankdata(v) - (len(v) + 1) / 2 for v in (a, b))
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else 0.0


def price(rating: np.ndarray, verbosity: np.ndarray) -> float:
    """lambda of ratings [n] and verbosities [n] of a reference set.

    Raises GirsanovError if there are fewer than three answers, numbers that are not finite, or all are equally verbose.
    """
    if len(rating) != len(verbosity) or len(rating) < 3:
        raise GirsanovError("length is taken out on a reference set of three answers or more, each with its verbosity")
    if not (np.isfinite(rating).all() and np.isfinite(verbosity).all()):
        raise GirsanovError("ratings or verbosities of the reference set are not finite: look at the features")
    if not np.ptp(verbosity) > 0:
        raise GirsanovError("every answer of the reference set is equally verbose: there is nothing to take out")
    if np.ptp(rating) == 0:
        return 0.0

    def rho(lam: float) -> float:
        return spearman(rating - lam * verbosity, verbosity)

    low, high = bracket(rho, float(np.std(rating) / np.std(verbosity)))
    for _ in range(STEPS):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        low, high = (middle, high) if rho(middle) > 0 else (low, middle)
    return min((low, high), key=lambda lam: abs(rho(lam)))


def bracket(rho: Callable[[float], float], scale: float) -> tuple[float, float]:
    """Where rho is above 0, and where it is not."""
    low, high = -scale, scale
    while rho(low) <= 0:
        low *= 2
    while rho(high) > 0:
        high *= 2
    return low, high
