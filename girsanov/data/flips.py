r"""Which labels are flipped, from how sure a model of the reward is of each.

An annotator whose labels are flipped with probability e gives the stated order with probability

.. math:: (1 - e)\, \sigma(m) + e\, \sigma(-m)

m the log-odds that a model of the reward gives to the order as stated (trained on *other* rows). Given m and e, the
order is flipped with probability

.. math:: P(flip | m) = \frac{e\, \sigma(-m)}{(1 - e)\, \sigma(m) + e\, \sigma(-m)}

and the mean of these is the maximum-likelihood e: the iteration e <- mean P(flip | m) is EM, whose likelihood never
falls. A row is suspect when P(flip | m) exceeds a threshold; of rows at 1/2 every other one is flipped, if the model is
calibrated.

Reference: Dawid & Skene 1979, Applied Statistics 28 (EM for annotators); the closed form here is derived.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from girsanov.errors import GirsanovError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Flips:
    """What was found.

    Attributes:
        rate: e, the share of flipped labels.
        error: its standard error, from the curvature of the likelihood.
        probability: of each label to be flipped, [N].
    """

    rate: float
    error: float
    probability: Floats


def find_flips(margins: Sequence[float] | Floats, iterations: int = 500) -> Flips:
    """The rate of flipped labels and the probability of each, from log-odds m [N] of the stated order.

    Raises:
        GirsanovError: no margins, or one that is no finite number.
    """
    m = np.asarray(margins, dtype=np.float64)
    if m.ndim != 1 or len(m) == 0:
        raise GirsanovError("flipped labels are found from one margin a row: give at least one")
    if not np.isfinite(m).all():
        row = int((~np.isfinite(m)).argmax())
        raise GirsanovError(f"the margin of row {row + 1} is not finite: leave it out")
    right = np.exp(-np.logaddexp(0.0, -m))
    wrong = np.exp(-np.logaddexp(0.0, m))
    e = 0.1
    for _ in range(iterations):
        before, e = e, float(np.mean(_posterior(e, right, wrong)))
        if abs(e - before) < 1e-12:
            break
    slope = (wrong - right) / ((1 - e) * right + e * wrong)
    curvature = float(np.sum(slope**2))
    return Flips(e, curvature**-0.5 if curvature > 0 else float("inf"), _posterior(e, right, wrong))


def _posterior(e: float, right: Floats, wrong: Floats) -> Floats:
    result: Floats = e * wrong / ((1 - e) * right + e * wrong)
    return result
