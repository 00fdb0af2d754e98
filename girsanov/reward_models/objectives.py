"""The first stage of a gated reward model from a file: rated items become heads, and length is taken out of them.

Which ratings there are is read off the items' ``scores`` (helpfulness, correctness, ...). The heads are fitted on the
items to train on; how well they predict is measured on the others.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from girsanov.errors import GirsanovError
from girsanov.evaluation.intervals import Interval, correlation_interval
from girsanov.reward_models.debias import price, spearman
from girsanov.reward_models.fronts import Front
from girsanov.reward_models.gated import Gated
from girsanov.reward_models.rows import Rows, encoded
from girsanov.settings import unknown

LENGTH = "length"


@dataclass(frozen=True)
class Objective:
    """What became of an objective.

    Attributes:
        name: what the file calls it.
        rated: items that it was fitted on.
        correlation: of predicted with given ratings on held-out items, or None below four of them.
        before, after: Spearman's rho with verbosity over the reference set, where length was taken out.
        lam: what was subtracted.
        weight: what the gate gives it, the mean over held-out prompts.
    """

    name: str
    rated: int
    correlation: Interval | None
    before: float | None = None
    after: float | None = None
    lam: float | None = None
    weight: float | None = None

    def cells(self) -> list[str]:
        """What a table says of it, after its name."""
        shown = [str(self.rated), "" if self.correlation is None else str(self.correlation)]
        if self.lam is not None:
            shown += [f"{self.before:+.3f}", f"{self.lam:+.3g}", f"{self.after:+.1e}"]
        return [*shown, "" if self.weight is None else f"{self.weight:.1%}"]

    def told(self) -> str:
        """A line about it."""
        line = f"{self.name}: {self.rated} rated"
        if self.correlation is not None:
            line += f", predicted with correlation {self.correlation}"
        if self.lam is not None:
            line += f", rank correlation with verbosity {self.before:+.3f} before and {self.after:+.1e} after"
        return line if self.weight is None else f"{line}, weight {self.weight:.1%}"

    def data(self) -> dict[str, object]:
        """As plain data."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Rated:
    """Features [n, F] and ratings [n, R] (NaN where there is none) of items, and which are to test on, bool [n]."""

    phi: Tensor
    ratings: Tensor
    held_out: Tensor


def names_of(rows: Rows, wanted: Sequence[str] | None = None) -> list[str]:
    """The objectives of a file, or those that are asked for.

    Raises GirsanovError if the file does not have them, or fewer than two.
    """
    there = list(dict.fromkeys(name for (_, item), _ in rows.rated for name in item.scores))
    for name in wanted or ():
        if name not in there:
            raise GirsanovError(f"{name!r} {unknown(name, there, 'rating of this file')}")
    chosen = list(dict.fromkeys(wanted or there))
    if len(chosen) < 2:
        raise GirsanovError(
            "a gate weighs two objectives or more, and this file's items have "
            f'{", ".join(chosen) or "no ratings"}: give items as {{"text": ..., "scores": {{"helpfulness": 3, ...}}}}'
        )
    return chosen


def rated_items(rows: Rows, front: Front, names: Sequence[str]) -> Rated:
    """Every item that has one of the ratings."""
    kept = [(asked, test) for asked, test in rows.rated if any(n in asked[1].scores for n in names)]
    ratings = torch.tensor([[item.scores.get(n, torch.nan) for n in names] for (_, item), _ in kept])
    phi = encoded(front, [asked for asked, _ in kept], rows.folder).float()
    return Rated(phi, ratings, torch.tensor([test for _, test in kept]))


def fit_objectives(
    net: nn.Module, data: Rated, names: Sequence[str], debias: str | None = None, ridge: float = 1e-3
) -> tuple[Objective, ...]:
    """Fits the heads of every member of a gated network, and takes length out of them.

    Args:
        net: members that are ``Gated``.
        data: rated items.
        names: of the objectives, in the order of the ratings.
        debias: the objective that stands for verbosity, or "length" if the last feature is its logarithm.
        ridge: lambda of the regression, times the number of items.
    """
    gates = [m for m in net.modules() if isinstance(m, Gated)]
    phi, ratings = data.phi[~data.held_out], data.ratings[~data.held_out]
    if not len(phi):
        raise GirsanovError("every rated item is to test on: change --held-out, or give more rows")
    for gate in gates:
        gate.fit_ratings(phi, ratings, ridge * len(phi))
    predicted = gates[0].ratings(data.phi[data.held_out])
    found = [
        Objective(name, int(ratings[:, j].isfinite().sum()), agreement(predicted[:, j], data.ratings[data.held_out, j]))
        for j, name in enumerate(names)
    ]
    return tuple(found) if debias is None else taken_out(gates, phi, found, debias)


def agreement(predicted: Tensor, given: Tensor) -> Interval | None:
    """The correlation over items that are rated."""
    known = given.isfinite()
    return correlation_interval(predicted[known], given[known]) if int(known.sum()) >= 4 else None


def taken_out(gates: Sequence[Gated], phi: Tensor, found: Sequence[Objective], debias: str) -> tuple[Objective, ...]:
    """Subtracts verbosity from every head; the reference set are the items that the heads were fitted on."""
    names = [o.name for o in found]
    if debias not in (*names, LENGTH):
        raise GirsanovError(f"{debias!r} {unknown(debias, (*names, LENGTH), 'objective that stands for verbosity')}")
    gate = gates[0]
    if debias in names:
        weight, bias = gate.weight[:, names.index(debias)].clone(), gate.bias[names.index(debias)].clone()
    else:
        weight, bias = torch.zeros_like(gate.weight[:, 0]), torch.zeros_like(gate.bias[0])
        weight[-1] = 1.0
    verbosity, before = (phi @ weight + bias).double().numpy(), gate.ratings(phi).double().numpy()
    lam = [price(before[:, j], verbosity) for j in range(len(names))]
    for g in gates:
        g.subtract(torch.tensor(lam, dtype=torch.float64), weight, bias)
    after = gate.ratings(phi).double().numpy()
    return tuple(
        Objective(
            o.name,
            o.rated,
            o.correlation,
            spearman(before[:, j], verbosity),
            spearman(after[:, j], verbosity),
            lam[j],
        )
        for j, o in enumerate(found)
    )
