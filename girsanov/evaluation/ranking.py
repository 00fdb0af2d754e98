r"""A ranking of several models from games between two: Bradley-Terry by maximum likelihood, and Elo's running form.

Model i beats model j with probability ``sigma(theta_i - theta_j)``. From games (a, b, y), y the share of the win of a
(1, 1/2 for a tie, 0), the ratings are

.. math:: \theta = \arg\max \sum_g y \log \sigma(\theta_a - \theta_b) + (1 - y) \log \sigma(\theta_b - \theta_a)
    - \tfrac{prior}{2} |\theta|^2, \qquad \sum_i \theta_i = 0

At the maximum (prior = 0) every model's expected wins equal its wins. It is finite and unique if and only if, however
the models are split in two, each side has won against the other (Ford 1957). Newton's method on a concave function,
with steps halved until it rises.

*Intervals.* Games of one prompt are not independent, so the covariance is the sandwich ``H^+ (sum_c G_c G_c^T) H^+``
with the Hessian H and the gradients G_c of the clusters c (prompts); without clusters every game is one. It also holds
where ties make outcomes less spread than a coin's.

*Scale.* ``rating = 1000 + 400 theta / log 10``: 400 points are odds of ten to one.

*Elo.* ``theta_a += k (y - sigma(theta_a - theta_b))`` game after game, a stochastic gradient of the same likelihood: it
hovers about the maximum with a spread of the order of ``sqrt(k)`` and depends on the order of the games; ``shuffles``
averages over random orders.

References: Bradley & Terry 1952, doi:10.2307/2334029; Ford 1957, doi:10.2307/2308513; Elo 1978, The Rating of
Chessplayers; Chiang et al. 2024, arXiv:2403.04132 (the use for language models).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from girsanov.errors import GirsanovError
from girsanov.evaluation.calibration import sigmoid
from girsanov.evaluation.intervals import Interval, quantile

SCALE = 400 / math.log(10)
CENTRE = 1000.0


@dataclass(frozen=True)
class Games:
    """Games between M models.

    Attributes:
        names: of the models.
        a, b: who played, int [N].
        y: the share of the win of a, in [0, 1], [N].
        cluster: the prompt of each game, [N]; each game its own if not given.
    """

    names: tuple[str, ...]
    a: np.ndarray
    b: np.ndarray
    y: np.ndarray
    cluster: np.ndarray | None = None

    def __post_init__(self) -> None:
        if len(self.names) < 2 or len(self.y) == 0:
            raise GirsanovError("a ranking needs two models and a game between them")
        if not len(self.a) == len(self.b) == len(self.y) or (
            self.cluster is not None and len(self.cluster) != len(self.y)
        ):
            raise GirsanovError("a game has two models and an outcome: the columns differ in length")
        wrong = np.flatnonzero(~((self.y >= 0) & (self.y <= 1)))
        if len(wrong):
            raise GirsanovError(
                f"the outcome of game {wrong[0]} is {self.y[wrong[0]]}: 1 is a win of a, 0.5 a tie, 0 a loss"
            )
        same = np.flatnonzero(self.a == self.b)
        if len(same):
            raise GirsanovError(f"game {same[0]} sets {self.names[self.a[same[0]]]} against itself: leave it out")

    @classmethod
    def of(
        cls, a: Sequence[str], b: Sequence[str], y: Sequence[float], cluster: Sequence[object] | None = None
    ) -> "Games":
        """From names; the models come in the order of their first game."""
        index: dict[str, int] = {}
        for pair in zip(a, b, strict=True):
            for name in pair:
                index.setdefault(name, len(index))
        prompts: dict[object, int] = {}
        rows = None if cluster is None else np.array([prompts.setdefault(c, len(prompts)) for c in cluster])
        left, right = (np.array([index[n] for n in side], dtype=np.int64) for side in (a, b))
        return cls(tuple(index), left, right, np.asarray(y, dtype=np.float64), rows)

    def wins(self) -> np.ndarray:
        """``W[i, j]``: games that i won against j, ties half, [M, M]."""
        w = np.zeros((len(self.names), len(self.names)))
        np.add.at(w, (self.a, self.b), self.y)
        np.add.at(w, (self.b, self.a), 1 - self.y)
        return w


@dataclass(frozen=True)
class Ranking:
    """Models, best first, with their ratings.

    Attributes:
        names: of the models.
        ratings: with intervals; n is the number of games of the model.
        wins: ``W[i, j]`` in this order.
    """

    names: tuple[str, ...]
    ratings: tuple[Interval, ...]
    wins: np.ndarray

    def table(self) -> str:
        """As text."""
        width = max(len(n) for n in self.names)
        lines = [f"{'':>3} {'model':<{width}}  rating  interval          games  wins"]
        for place, (name, r) in enumerate(zip(self.names, self.ratings, strict=True), 1):
            share = self.wins[place - 1].sum() / max(1.0, float(r.n))
            interval = f"[{r.low:.0f}, {r.high:.0f}]"
            lines.append(f"{place:>3} {name:<{width}}  {r.value:6.0f}  {interval:<16}  {r.n:5d}  {share:.1%}")
        return "\n".join(lines)


def bradley_terry(games: Games, prior: float = 0.0) -> np.ndarray:
    """theta [M] of mean 0. Raises GirsanovError with the models' names if the maximum is not finite."""
    if prior < 0:
        raise GirsanovError(f"the weight of the prior must be at least 0, not {prior}")
    if prior == 0:
        check_connected(games)
    theta = np.zeros(len(games.names))
    value = _objective(theta, games, prior)
    for _ in range(200):
        gradient, hessian = _derivatives(theta, games, prior)
        move = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        move -= move.mean()
        size = 1.0
        while _objective(theta + size * move, games, prior) < value - 1e-12 * abs(value) and size > 1e-10:
            size /= 2
        theta = theta + size * move
        value = _objective(theta, games, prior)
        if np.abs(move).max() < 1e-11:
            break
    return theta - theta.mean()


def _objective(theta: np.ndarray, games: Games, prior: float) -> float:
    gap = theta[games.a] - theta[games.b]
    likelihood = -games.y @ np.logaddexp(0, -gap) - (1 - games.y) @ np.logaddexp(0, gap)
    return float(likelihood - 0.5 * prior * theta @ theta)


def _derivatives(theta: np.ndarray, games: Games, prior: float) -> tuple[np.ndarray, np.ndarray]:
    """Gradient [M] and minus the Hessian [M, M]."""
    p = sigmoid(theta[games.a] - theta[games.b])
    gradient, hessian = -prior * theta, prior * np.eye(len(theta))
    np.add.at(gradient, games.a, games.y - p)
    np.add.at(gradient, games.b, p - games.y)
    w = p * (1 - p)
    for i, j, sign in ((games.a, games.a, 1), (games.b, games.b, 1), (games.a, games.b, -1), (games.b, games.a, -1)):
        np.add.at(hessian, (i, j), sign * w)
    return gradient, hessian


def check_connected(games: Games) -> None:
    """Raises GirsanovError unless each side of every split of the models has won against the other."""
    from scipy.sparse.csgraph import connected_components

    wins = games.wins()
    parts, label = connected_components(wins > 0, directed=True, connection="strong")
    if parts == 1:
        return
    for part in range(parts):
        inside = label == part
        if not (wins[np.ix_(~inside, inside)] > 0).any():
            names = ", ".join(np.array(games.names)[inside])
            never = "never lost to" if (wins[np.ix_(inside, ~inside)] > 0).any() else "never met"
            raise GirsanovError(
                f"{names} {never} the others, so the ratings have no finite best fit: add games, or give a prior "
                "(0.1, say)"
            )


def covariance(theta: np.ndarray, games: Games, prior: float = 0.0) -> np.ndarray:
    """The sandwich covariance of theta, [M, M]."""
    m = len(theta)
    inverse = np.linalg.pinv(_derivatives(theta, games, prior)[1])
    residual = games.y - sigmoid(theta[games.a] - theta[games.b])
    cluster = np.arange(len(residual)) if games.cluster is None else games.cluster
    score = np.zeros((int(cluster.max()) + 1, m))
    np.add.at(score, (cluster, games.a), residual)
    np.add.at(score, (cluster, games.b), -residual)
    used = len(np.unique(cluster))
    return inverse @ (score.T @ score) @ inverse * (used / max(1, used - 1))


def rank(games: Games, prior: float = 0.0, confidence: float = 0.95) -> Ranking:
    """The models with their ratings and intervals, best first."""
    theta = bradley_terry(games, prior)
    error = np.sqrt(np.maximum(np.diag(covariance(theta, games, prior)), 0.0)) * quantile(confidence)
    played = np.bincount(np.concatenate([games.a, games.b]), minlength=len(theta))
    order = np.argsort(-theta, kind="stable")
    centre, half = CENTRE + SCALE * theta, SCALE * error
    ratings = tuple(
        Interval(centre[i], centre[i] - half[i], centre[i] + half[i], int(played[i]), confidence)
        for i in order.tolist()
    )
    return Ranking(tuple(games.names[i] for i in order), ratings, games.wins()[np.ix_(order, order)])


def elo(games: Games, k: float = 4.0, shuffles: int = 0, seed: int = 0) -> np.ndarray:
    """Elo's ratings [M] on the scale of ``rank``, all starting at 1000.

    Args:
        games: in the order in which they were played.
        k: points that a sure loser wins; 4 for slow and 32 for fast ratings.
        shuffles: 0 plays them in order; n averages over n random orders.
        seed: of the orders.
    """
    if not k > 0:
        raise GirsanovError(f"k must be positive, not {k}: 4 is slow, 32 is fast")
    rng = np.random.default_rng(seed)
    orders = [np.arange(len(games.y))] if shuffles == 0 else [rng.permutation(len(games.y)) for _ in range(shuffles)]
    total = np.zeros(len(games.names))
    for order in orders:
        rating = np.full(len(games.names), CENTRE)
        for g in order:
            a, b = games.a[g], games.b[g]
            gain = k * (games.y[g] - 1 / (1 + 10 ** ((rating[b] - rating[a]) / 400)))
            rating[a] += gain
            rating[b] -= gain
        total += rating
    return total / len(orders)
