r"""Win rates of one model over another, and what is left of them when length is held equal.

*Win rate.* The mean of outcomes y in {1, 1/2, 0} (win, tie, loss), each prompt counted once; the interval is a BCa
bootstrap over prompts.

*Length-controlled.* Judges like long answers. With ``d`` the difference of lengths in units of its standard deviation,

.. math:: P(\text{win}) = \sigma\big( \theta + \phi \tanh(d_x) + \psi \gamma_x \big), \qquad
    LC = \frac{1}{N} \sum_x \sigma(\theta + \psi \gamma_x)

is fitted by maximum likelihood (ties count as half a win) and then read with the length term set to zero. ``gamma`` is
a difficulty of each prompt that comes from elsewhere (in AlpacaEval from a fit over all models of the board); without
it the last term is left out. A weak penalty ``ridge (phi^2 + psi^2) / 2`` keeps phi finite where length decides every
game; theta stays within +-30. Where the lengths are equal LC is the win rate itself.

Reference: Dubois et al. 2024, arXiv:2404.04475, section 3.
"""

from dataclasses import dataclass

import numpy as np

from girsanov.errors import GirsanovError
from girsanov.evaluation.calibration import sigmoid
from girsanov.evaluation.intervals import Interval, Values, bootstrap, numbers, share_interval

LIMIT = 30.0


@dataclass(frozen=True)
class LengthControlled:
    """A win rate with length held equal.

    Attributes:
        rate: the length-controlled win rate.
        length: phi, the taste for length: above 0 the judge prefers the longer answer.
    """

    rate: Interval
    length: Interval


def by_prompt(y: np.ndarray, prompt: Values | None) -> np.ndarray:
    """Mean outcome of each prompt."""
    if prompt is None:
        return y
    index = np.unique(numbers(prompt, 1), return_inverse=True)[1]
    if len(index) != len(y):
        raise GirsanovError(f"{len(index)} prompts for {len(y)} outcomes: give one each")
    return np.bincount(index, y) / np.bincount(index)


def outcomes(y: Values, least: int = 1) -> np.ndarray:
    """Checked outcomes [N]. Raises GirsanovError with the row of one outside [0, 1]."""
    x = numbers(y, least)
    wrong = np.flatnonzero((x < 0) | (x > 1))
    if len(wrong):
        raise GirsanovError(f"outcome {wrong[0]} is {x[wrong[0]]:g}: 1 is a win, 0.5 a tie, 0 a loss")
    return x


def outcome_rate(y: Values, prompt: Values | None = None, *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """The win rate of outcomes [N]: bootstrapped over prompts; Wilson's interval where all prompts are alike."""
    means = by_prompt(outcomes(y), prompt)
    if len(means) < 3 or np.ptp(means) == 0:  # a bootstrap of equal numbers would claim certainty
        return share_interval(float(means.sum()), len(means), confidence)
    return bootstrap(means, confidence=confidence, seed=seed)


def length_controlled(
    y: Values,
    length: Values,
    other_length: Values,
    difficulty: Values | None = None,
    *,
    ridge: float = 0.01,
    confidence: float = 0.95,
    resamples: int = 500,
    seed: int = 0,
) -> LengthControlled:
    """The length-controlled win rate of outcomes [N] of answers with these lengths over answers with the others'.

    Raises:
        GirsanovError: fewer than three prompts, an outcome outside [0, 1], columns of different lengths, outcomes that
            are all alike.
    """
    win, columns = outcomes(y, 3), design(numbers(length, 3) - numbers(other_length, 3), difficulty)
    if len(columns) != len(win):
        raise GirsanovError(f"{len(win)} outcomes and lengths of {len(columns)} answers: give one each")

    if np.ptp(win) == 0:
        raise GirsanovError("every outcome is the same, so nothing can be said of length: report the win rate")
    fits: dict[bytes, np.ndarray] = {}  # both intervals are of the same resamples

    def at(rows: np.ndarray) -> np.ndarray:
        chosen, key = rows.astype(np.int64), rows.tobytes()
        if key not in fits:
            fits[key] = fit(columns[chosen], win[chosen], ridge)
        return fits[key]

    def rate(rows: np.ndarray) -> float:
        found = at(rows)
        neutral = columns[rows.astype(np.int64)].copy()
        neutral[:, 1] = 0.0
        return float(sigmoid(neutral @ found).mean())

    rows = np.arange(len(win), dtype=np.float64)
    options = {"confidence": confidence, "resamples": resamples, "seed": seed}
    equal = not columns[:, 1].any()
    return LengthControlled(
        bootstrap(rows, rate, **options),  # type: ignore[arg-type]
        Interval(0.0, 0.0, 0.0, len(win), confidence)
        if equal
        else bootstrap(rows, lambda rows: float(at(rows)[1]), **options),  # type: ignore[arg-type]
    )


def design(gap: np.ndarray, difficulty: Values | None = None) -> np.ndarray:
    """``1, tanh(gap / std), difficulty`` of N prompts, [N, 2 or 3]."""
    spread = float(gap.std())
    columns = [np.ones(len(gap)), np.tanh(gap / spread) if spread > 0 else np.zeros(len(gap))]
    return np.stack(columns if difficulty is None else [*columns, numbers(difficulty, len(gap))], 1)


def fit(columns: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray:
    """Coefficients of a logistic regression, by Newton's method; the first column carries no penalty."""
    weight = np.full(columns.shape[1], ridge)
    weight[0] = 1e-9  # keeps the matrix regular where a resample is all wins
    beta = np.zeros(columns.shape[1])
    for _ in range(50):
        p = sigmoid(columns @ beta)
        hessian = (columns * (p * (1 - p))[:, None]).T @ columns + np.diag(weight)
        move = np.linalg.solve(hessian, columns.T @ (y - p) - weight * beta)
        move *= min(
            1.0, 4.0 / max(1e-12, float(np.abs(move).max()))
        )  # a full step can overshoot where p is near 0 or 1
        beta = np.clip(beta + move, -LIMIT, LIMIT)
        if np.abs(move).max() < 1e-10:
            break
    return beta
