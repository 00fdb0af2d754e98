r"""Accuracy and calibration of a model of preferences on pairs that it has not seen.

A model gives the preferred item of pair i the probability ``p_i = sigma(g_i)``, g the gap of its scores. Of N pairs:

==============  ==========================================================================================
accuracy        share of pairs with g > 0, ties half; Wilson's interval
log loss        mean of ``-log p_i``; a model that knows nothing has log 2
brier           mean of ``(1 - p_i)^2``; 1/4 knows nothing
slope           b that maximises ``sum log sigma(b g_i)``: 1 calibrated, below 1 too sure, ``1/b`` the temperature
                that would calibrate it; the interval is ``b +- z / sqrt(I)``, ``I = sum g^2 sigma(bg) sigma(-bg)``
z               Spiegelhalter's statistic, standard normal if the probabilities are exact
==============  ==========================================================================================

.. math:: z = \frac{\sum_i (1 - p_i)(1 - 2 p_i)}{\sqrt{\sum_i (1 - 2 p_i)^2 p_i (1 - p_i)}}

(the outcome y - p with y = 1 for the preferred item; turning a pair around changes both factors' signs). The
calibration error is ``sum_b (n_b / N) |share right - mean confidence|`` over bins of equal size of the confidence
``max(p, 1 - p)``. It is positive by chance alone: ``chance`` is its mean for an exact model, ``sqrt(2/pi)`` times the
binomial standard deviation of each bin.

References: Guo et al. 2017, arXiv:1706.04599 (calibration error, temperature); Spiegelhalter 1986,
doi:10.1002/sim.4780050506.
"""

import math
from dataclasses import dataclass

import numpy as np

from girsanov.errors import GirsanovError
from girsanov.evaluation.intervals import Interval, Values, mean_interval, numbers, quantile, share_interval


@dataclass(frozen=True)
class Bin:
    """Pairs of about the same confidence: their mean confidence, and the share that the model orders right."""

    confidence: float
    accuracy: Interval


@dataclass(frozen=True)
class Calibration:
    """What a model of preferences is worth on held-out pairs.

    Attributes:
        accuracy, log_loss, brier: with intervals.
        slope: the factor that would calibrate the gaps, with its interval; None where every pair is ordered right, so
            that any factor is too small.
        error, chance: calibration error, and what it would be on average for an exact model.
        z: Spiegelhalter's statistic.
        bins: the reliability diagram.
    """

    accuracy: Interval
    log_loss: Interval
    brier: Interval
    slope: Interval | None
    error: float
    chance: float
    z: float
    bins: tuple[Bin, ...]

    def rows(self) -> dict[str, str]:
        """What people call the numbers, and the numbers."""
        slope = "none: every pair is right" if self.slope is None else str(self.slope)
        return {
            "accuracy": str(self.accuracy),
            "log loss (log 2 = 0.6931 knows nothing)": str(self.log_loss),
            "Brier score": str(self.brier),
            "slope (1 is calibrated)": slope,
            "calibration error": f"{self.error:.4g} (by chance {self.chance:.4g})",
            "Spiegelhalter's z": f"{self.z:.2f}",
        }


def calibration(chosen: Values, rejected: Values, bins: int = 10, confidence: float = 0.95) -> Calibration:
    """The numbers of the scores [N] of preferred items and [N] of the others. Raises GirsanovError below two pairs."""
    a, b = numbers(chosen, 2), numbers(rejected, 2)
    if len(a) != len(b):
        raise GirsanovError(f"{len(a)} scores of preferred items and {len(b)} of others: give one of each a pair")
    gap = a - b
    p, n = sigmoid(gap), len(gap)
    right = (gap > 0) + 0.5 * (gap == 0)
    found = tuple(reliability(p, right, min(bins, n), confidence))
    spread = np.square(1 - 2 * p) @ (p * (1 - p))
    return Calibration(
        share_interval(float(right.sum()), n, confidence),
        mean_interval(np.logaddexp(0.0, -gap), confidence),
        mean_interval(np.square(1 - p), confidence),
        calibration_slope(gap, confidence),
        sum(b.accuracy.n / n * abs(b.accuracy.value - b.confidence) for b in found),
        sum(chance_error(np.maximum(p, 1 - p)[rows]) * len(rows) / n for rows in _bins(p, min(bins, n))),
        float((1 - p) @ (1 - 2 * p) / math.sqrt(spread)) if spread > 0 else 0.0,
        found,
    )


def sigmoid(x: np.ndarray) -> np.ndarray:
    """``1 / (1 + exp(-x))``, never overflowing."""
    return np.exp(-np.logaddexp(0.0, -x))


def _bins(p: np.ndarray, bins: int) -> list[np.ndarray]:
    return np.array_split(np.argsort(np.maximum(p, 1 - p), kind="stable"), bins)


def reliability(p: np.ndarray, right: np.ndarray, bins: int, confidence: float = 0.95) -> list[Bin]:
    """Bins of equal size by confidence, from probabilities of the preferred item [N] and whether it came first [N]."""
    sure = np.maximum(p, 1 - p)
    return [
        Bin(float(sure[rows].mean()), share_interval(float(right[rows].sum()), len(rows), confidence))
        for rows in _bins(p, bins)
    ]


def chance_error(sure: np.ndarray) -> float:
    """``E |share right - mean confidence|`` of one bin if its confidences [n] are exact, by the normal law."""
    return math.sqrt(2 / math.pi * float((sure * (1 - sure)).sum())) / len(sure)


def calibration_slope(gap: np.ndarray, confidence: float = 0.95) -> Interval | None:
    """The slope with its interval for gaps [N] of preferred over other items; None if no gap is negative."""
    from scipy.optimize import brentq

    if not (gap < 0).any():
        return None
    if not (gap > 0).any():
        raise GirsanovError("every preferred item scores below the other: the labels look flipped")

    scale = float(np.abs(gap).max())

    def rise(b: float) -> float:
        return float(gap / scale @ sigmoid(-b * gap / scale))

    width = 1.0
    while rise(width) > 0 or rise(-width) < 0:
        width *= 2
    b = float(brentq(rise, -width, width, xtol=1e-12)) / scale
    information = float(np.square(gap) @ (sigmoid(b * gap) * sigmoid(-b * gap)))
    half = quantile(confidence) / math.sqrt(information)
    return Interval(b, b - half, b + half, len(gap), confidence)
