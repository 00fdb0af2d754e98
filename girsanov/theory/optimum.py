r"""Path-KL optimum of a chain on the line, for any data and any smooth reward: what an ideal method learns there.

A policy may shift the mean of each noisy step by delta(x). Maximising ``E r - beta sum E delta^2 / (2 std^2)`` is a
dynamic programme,

.. math:: V_t(x) = \max_\delta \; E[V_s(mean + \delta + std\, z)] - \frac{\beta\, \delta^2}{2\, std^2}, \qquad
    \delta = \frac{std^2}{\beta}\, E[V_s'(mean + \delta + std\, z)]

with the equation for delta solved by Newton's method at every point of the table. Steps without noise take no control.
On Gaussian data with a quadratic reward this is ``problems.path_kl_limit``; as the steps shrink, V is the value of the
controlled SDE.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.models import Model
from girsanov.problems.rewards import check_beta
from girsanov.theory.line import Line, Score, as_numpy, hermite


@dataclass(frozen=True)
class LineOptimum:
    """The optimally tuned chain.

    Attributes:
        line: the chain of the tuned model; its ``expect`` gives expectations under the tuned policy.
        shifts: largest shift of each step's mean in units of its std; 0 where a step has no noise.
    """

    line: Line
    shifts: tuple[float, ...]

    @property
    def model(self) -> Model:
        """The tuned model: the reference's velocity plus ``delta / gain``, linear in time between grid times."""
        model = self.line.model
        assert isinstance(model, Model)
        return model


def line_optimum(line: Line, reward: Score, beta: float) -> LineOptimum:
    """Solves the dynamic programme of a chain with a velocity model.

    Args:
        line: the reference chain.
        reward: the pay-off at the end.
        beta: weight of the path KL.

    Raises:
        GirsanovError: the model predicts no velocity, the sampler has several stages, or a step is so long that its
            best shift is not unique.
    """
    model = line.model
    if not isinstance(model, Model) or model.prediction != "velocity":
        raise GirsanovError("the tuned chain becomes a field for velocity models: use model(prediction='velocity')")
    check_beta(beta)
    z, w = hermite(line.order)
    end = line.nodes(line.grid.ts[-1])
    exact = as_numpy(reward)
    value: Any = CubicSpline(end, exact(end))
    fields, shifts, last = [CubicSpline(end, 0 * end)], [0.0], True
    for step in reversed(list(line.grid)):
        x, mean, std = line.step(step)
        if std > 0:
            delta, held = _best_shift(value, mean, std, beta, z, w)
            fields.append(CubicSpline(x, delta / _gain(line, step)))
            shifts.append(float(np.abs(delta).max() / std))
        else:
            held = exact(mean) if last else value(mean)
            fields.append(CubicSpline(x, 0 * x))
            shifts.append(0.0)
        value, last = CubicSpline(x, held), False
    tuned = dataclasses.replace(model, net=_Field(model, line.grid.ts.flip(0), fields))
    return LineOptimum(dataclasses.replace(line, model=tuned), tuple(reversed(shifts[1:])))


def _best_shift(
    value: CubicSpline, mean: np.ndarray, std: float, beta: float, z: np.ndarray, w: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The best shift of each mean, and the value it reaches."""
    slope, curve, g = value.derivative(1), value.derivative(2), std**2 / beta
    points = mean[:, None] + std * z
    delta = np.zeros_like(mean)
    for _ in range(60):
        moved = points + delta[:, None]
        hold = 1 - g * (curve(moved) @ w)
        if not (hold > 0.05).all():
            raise GirsanovError(
                "a step of this chain is too long for its best shift to be unique: take more steps, or raise beta"
            )
        change = (g * (slope(moved) @ w) - delta) / hold
        delta = delta + change
        if np.abs(change).max() < 1e-11 * (1 + np.abs(delta).max()):
            return delta, value(points + delta[:, None]) @ w - beta * delta**2 / (2 * std**2)
    raise GirsanovError("the best shift of a step was not found in 60 Newton steps: take more steps, or raise beta")


def _gain(line: Line, step: Any) -> float:
    probe = torch.zeros(1, 1, dtype=torch.float64)
    gain = line.sampler.kernel(line.model, probe, step)[0].gain
    if gain is None:
        raise GirsanovError("a tuned chain becomes a field for one-stage samplers: use GDDIM")
    return float(gain)


class _Field:
    """The reference's velocity plus the tabulated correction."""

    def __init__(self, model: Model, knots: Tensor, fields: list[CubicSpline]) -> None:
        self.net, self.knots, self.fields = model.net, knots, fields

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        times = t.double()
        j = torch.searchsorted(self.knots, times.contiguous()).clamp(1, len(self.knots) - 1)
        w = ((times - self.knots[j - 1]) / (self.knots[j] - self.knots[j - 1])).clamp(0, 1)
        move = torch.empty(len(x), dtype=torch.float64)
        for level in j.unique().tolist():
            rows = j == level
            y = x[rows, 0].double().numpy()
            low, high = (torch.from_numpy(np.asarray(self.fields[i](y))) for i in (level - 1, level))
            move[rows] = torch.lerp(low, high, w[rows])
        return self.net(x, t, cond) + move.unsqueeze(1).to(x.dtype)
