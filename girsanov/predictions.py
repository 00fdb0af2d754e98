r"""What a network predicts: five rows of one table, and one formula from any row to any other.

A prediction is ``p = a x_0 + b eps`` given ``x_t = alpha x_0 + sigma eps``:

==========  ===========  ===========
prediction  a            b
==========  ===========  ===========
x0          1            0
eps         0            1
score       0            -1 / sigma
velocity    d_alpha      d_sigma
v           -sigma       alpha
==========  ===========  ===========

Solving the two equations gives any combination ``A x_0 + B eps`` from the state and the prediction,

.. math:: A x_0 + B \epsilon = \frac{(A b - B a)\, x_t + (B \alpha - A \sigma)\, p}{\alpha b - \sigma a}

so one affine map ``c_x x + c_p p`` is both the conversion between rows and a sampler's step. The map does not exist
where ``alpha b - sigma a = 0``: eps and score say nothing of x_0 where alpha = 0, and x0 nothing of eps where sigma
= 0.

References: Salimans & Ho 2022, arXiv:2202.00512 (v); Lipman et al. 2023, arXiv:2210.02747 (velocity).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.processes import Schedule

Prediction = Literal["x0", "eps", "score", "velocity", "v"]

ROWS: dict[Prediction, Callable[[Schedule], tuple[Tensor, Tensor]]] = {
    "x0": lambda c: (torch.ones_like(c.alpha), torch.zeros_like(c.alpha)),
    "eps": lambda c: (torch.zeros_like(c.alpha), torch.ones_like(c.alpha)),
    "score": lambda c: (torch.zeros_like(c.alpha), -1 / c.sigma),
    "velocity": lambda c: (c.d_alpha, c.d_sigma),
    "v": lambda c: (-c.sigma, c.alpha),
}
"""The table: a prediction's coefficients (a, b) at a schedule."""


def row(c: Schedule, prediction: Prediction) -> tuple[Tensor, Tensor]:
    """The coefficients (a, b) of a prediction. Raises on an unknown name."""
    if prediction not in ROWS:
        raise GirsanovError(f"unknown prediction {prediction!r}: choose one of {', '.join(ROWS)}")
    return ROWS[prediction](c)


def determinant(c: Schedule, prediction: Prediction) -> Tensor:
    """``alpha b - sigma a``: zero (or not finite) where state and prediction do not fix x_0 and eps."""
    a, b = row(c, prediction)
    return c.alpha * b - c.sigma * a


def _degenerate(det: Tensor) -> bool:
    """Whether a determinant is zero or not finite somewhere (False on an accelerator: looking would wait for it)."""
    if det.ndim == 0 and det.device.type == "cpu":
        return not 0 < abs(float(det)) < math.inf
    return det.device.type == "cpu" and not bool((det.isfinite() & (det != 0)).all())


def is_singular(c: Schedule, prediction: Prediction) -> bool:
    """Whether the prediction fails to fix x_0 and eps at this schedule (False for times on an accelerator)."""
    return _degenerate(determinant(c, prediction))


def affine_map(c: Schedule, prediction: Prediction, a_new: Tensor, b_new: Tensor) -> tuple[Tensor, Tensor]:
    """``(c_x, c_p)`` with ``a_new x_0 + b_new eps = c_x x_t + c_p p``; float64, of the shape of the schedule.

    Raises GirsanovError where the map does not exist.
    """
    a, b = row(c, prediction)
    det = c.alpha * b - c.sigma * a
    if _degenerate(det):
        raise GirsanovError(
            f"a {prediction} prediction does not determine the sample at alpha = {c.alpha.tolist()}, "
            f"sigma = {c.sigma.tolist()}: start the grid below t = 1 (for example start=0.999) and evaluate "
            "above t = 0, or use a velocity model"
        )
    return (a_new * b - b_new * a) / det, (b_new * c.alpha - a_new * c.sigma) / det


def scale(coefficient: Tensor, x: Tensor) -> float | Tensor:
    """A coefficient of shape [] or [B] as a factor of x [B, *D]: a host number, or a tensor [B, 1, ...] of x's
    dtype."""
    if coefficient.ndim == 0:
        return float(coefficient)
    if coefficient.shape[0] != x.shape[0]:
        raise GirsanovError(f"{coefficient.shape[0]} times for {x.shape[0]} samples: give one time, or one per sample")
    return coefficient.to(x).reshape(-1, *[1] * (x.ndim - 1))


def add_scaled(x: Tensor, p: Tensor, c: Tensor) -> Tensor:
    """``x + c p`` [B, *D] in the dtype of x, in one pass."""
    b = scale(c, x)
    return torch.add(x, p, alpha=b) if isinstance(b, float) else torch.addcmul(x, p, b)


def combine(x: Tensor, p: Tensor, c_x: Tensor, c_p: Tensor) -> Tensor:
    """``c_x x + c_p p`` [B, *D] in the dtype of x; allocates the result alone."""
    b = scale(c_p, x)
    out = x * scale(c_x, x)
    return out.add_(p, alpha=b) if isinstance(b, float) else out.addcmul_(p, b)


def convert(p: Tensor, x: Tensor, c: Schedule, source: Prediction, target: Prediction) -> Tensor:
    """One prediction kind to another at the same state: p, x and the result have shape [B, *D].

    Raises GirsanovError on a singular pair (the table in the module's docstring).
    """
    if source == target:
        return p
    return combine(x, p, *affine_map(c, source, *row(c, target)))
