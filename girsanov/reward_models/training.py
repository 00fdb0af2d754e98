"""Train a reward model and measure it on comparisons that it has not seen."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from girsanov.errors import GirsanovError
from girsanov.evaluation.calibration import Calibration, calibration
from girsanov.evaluation.intervals import Interval, correlation_interval, mean_interval, share_interval
from girsanov.noise import generator
from girsanov.policy import Policy
from girsanov.preferences.base import Loss
from girsanov.preferences.records import Compared
from girsanov.reward_models.data import Comparisons
from girsanov.reward_models.fronts import Front
from girsanov.reward_models.losses import bradley_terry
from girsanov.reward_models.method import RewardModelling, Scoring
from girsanov.reward_models.model import RewardModel
from girsanov.reward_models.scorers import ScorerConfig
from girsanov.train import Callback, TrainConfig, fit

PAIR = 7304  # noise of which pair of a ranking is tested


def train_reward_model(
    config: ScorerConfig,
    data: Comparisons,
    loss: Loss | None = None,
    *,
    train: TrainConfig | None = None,
    centre: float = 1e-3,
    net: torch.nn.Module | None = None,
    callbacks: Sequence[Callback] = (),
    front: Front | None = None,
    device: torch.device | str = "cpu",
) -> RewardModel:
    """A reward model fitted to comparisons.

    Args:
        config: the network.
        data: comparisons to train on.
        loss: Bradley-Terry's by default.
        train: iterations, learning rate, seed (of the network's start too).
        centre: weight of the mean square of the scores.
        net: a network of the configuration that has been prepared (a gate whose ratings are fitted); else a new one.
        callbacks: as of any run.
        front: what made the items of pictures or texts, to go with the model.
        device: where it is trained.

    Raises GirsanovError if the loss reads scores that the data do not have.
    """
    train = train or TrainConfig(iterations=200, lr=2e-3, weight_decay=0.01)
    loss = loss or bradley_terry()
    check_scores(loss, data)
    net = (config.build(train.seed) if net is None else net).to(device)
    fit(Policy(Scoring(net)), RewardModelling(loss=loss, centre=centre), data, train, callbacks)
    model = RewardModel(config, net, front=front)
    model.shift = float(model.compared(data)[_there(data)].mean())
    return model


def check_scores(loss: Loss, data: Comparisons) -> None:
    """Raises GirsanovError if a loss reads scores and rows have none, or nothing at all can be learned."""
    r = torch.zeros(data.items.shape[:2], dtype=torch.float64, requires_grad=True)
    score = None if data.score is None else data.score.double()
    rows = loss.rows(Compared(r, score=score, valid=_there(data)))
    (gradient,) = torch.autograd.grad(rows.sum(), r)
    lacking = ~(rows.isfinite() & gradient.isfinite().all(1))
    if bool(lacking.any()):
        raise GirsanovError(
            f"this loss reads the scores of compared items, and {int(lacking.sum())} of {len(rows)} comparisons have "
            "none: give items a score, or choose another loss"
        )
    if not bool(gradient.any()):
        raise GirsanovError("this loss fits the scores of items, and none has one: give scores, or choose another loss")


def _there(data: Comparisons) -> torch.Tensor:
    return torch.ones(data.items.shape[:2], dtype=torch.bool) if data.valid is None else data.valid


@dataclass(frozen=True)
class Measured:
    """What a reward model is worth on held-out comparisons.

    Attributes:
        pairs: accuracy and calibration on one pair of each prompt, drawn at random from its ranking.
        top: share of prompts whose best item scores highest of all.
        spread: mean standard deviation between the members of an ensemble, or None.
        correlation: rank correlation of the gaps of these pairs with those of the given scores (the annotator's
            reward), or None. Gaps, because a constant a prompt is free.
        error, fit: mean squared error against the given scores and correlation with them, item by item, of a model
            that was fitted to them; else None.
    """

    pairs: Calibration
    top: Interval
    spread: float | None
    correlation: Interval | None
    error: Interval | None = None
    fit: Interval | None = None

    def rows(self) -> dict[str, str]:
        """What people call the numbers, and the numbers."""
        found = self.pairs.rows()
        if self.top != self.pairs.accuracy:
            found["best item first"] = str(self.top)
        if self.spread is not None:
            found["spread between members"] = f"{self.spread:.4g}"
        if self.correlation is not None:
            found["rank correlation with the given gaps"] = str(self.correlation)
        if self.error is not None and self.fit is not None:
            found["correlation with the given scores"] = str(self.fit)
            found["squared error of the given scores"] = str(self.error)
        return found

    def data(self) -> dict[str, object]:
        """As plain data."""
        return dataclasses.asdict(self)


def measure(model: RewardModel, data: Comparisons, fitted: bool = False) -> Measured:
    """The numbers of a model on comparisons. Raises GirsanovError below two of them.

    Args:
        model: the model.
        data: comparisons.
        fitted: whether it was fitted to the given scores, so that these are what it should say.
    """
    scores, there = model.compared(data).double(), _there(data)
    better, worse = random_pairs(there)
    top = scores.masked_fill(~there, -torch.inf).argmax(1) == 0
    gap, correlation = scores.gather(1, better)[:, 0] - scores.gather(1, worse)[:, 0], None
    if data.score is not None:
        given = data.score.gather(1, better)[:, 0] - data.score.gather(1, worse)[:, 0]
        known = given.isfinite()
        if known.sum() >= 4:
            correlation = correlation_interval(gap[known], given[known], ranks=True)
    found = Measured(
        calibration(gap, torch.zeros_like(gap)),
        share_interval(float(top.sum()), len(data)),
        spread(model, data) if model.config.members > 1 else None,
        correlation,
    )
    return closeness(found, scores + model.shift, there, data.score) if fitted else found


def closeness(found: Measured, scores: torch.Tensor, there: torch.Tensor, given: torch.Tensor | None) -> Measured:
    """The same with how close scores [N, K] are to those given."""
    known = there & given.isfinite() if given is not None else torch.zeros_like(there)
    if given is None or known.sum() < 4:
        return found
    r, g = scores[known], given[known].double()
    return dataclasses.replace(found, error=mean_interval((r - g).square()), fit=correlation_interval(r, g))


def random_pairs(there: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two random places of each row, the better (smaller) first: int64 [N, 1] each, of the items that are there.

    The pair must not be chosen by how it was ranked: that the best of four beats the worst of four is likelier than
    Bradley-Terry says of these two, and an exact model would look too timid.
    """
    u = torch.rand(there.shape, generator=generator((PAIR, *there.shape)), dtype=torch.float64)
    places = u.masked_fill(~there, 2.0).argsort(1)[:, :2].sort(1).values
    return places[:, :1], places[:, 1:]


@torch.no_grad()
def spread(model: RewardModel, data: Comparisons) -> float:
    """Mean standard deviation of the members' gaps (shifts of single members cancel)."""
    device = next(model.net.parameters()).device
    cond = None if data.cond is None else data.cond.to(device)
    first, second = (model.members(data.items[:, k].to(device), cond) for k in (0, 1))
    return float((first - second).std(1).mean())
