"""Measures of a set of samples against real data, by name, on features that the user gives.

``features(x [N, *D]) -> [N, F]`` says what counts as alike: the pixels themselves for small images, an embedding
network for large ones. The measures take any tensors and flatten them.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.evaluation.distances import frechet, kid, mmd, sliced_wasserstein
from girsanov.evaluation.diversity import manifold, nearest, pairwise, vendi

Features = Callable[[Tensor], Tensor]


def flatten(x: Tensor) -> Tensor:
    """The numbers themselves as features, [N, F]."""
    return x.flatten(1)


TWO_SAMPLE: Mapping[str, Callable[[Tensor, Tensor], float]] = {
    "frechet": frechet,
    "kid": kid,
    "mmd": mmd,
    "sliced_wasserstein": sliced_wasserstein,
    "precision": lambda x, y: manifold(x, y).precision,
    "recall": lambda x, y: manifold(x, y).recall,
    "density": lambda x, y: manifold(x, y).density,
    "coverage": lambda x, y: manifold(x, y).coverage,
    "nearest": lambda x, y: float(nearest(x, y).mean()),
}
"""Measures of samples [N, F] against real data [M, F]."""

ONE_SAMPLE: Mapping[str, Callable[[Tensor], float]] = {"pairwise": pairwise, "vendi": vendi}
"""Measures of samples [N, F] alone."""


@torch.no_grad()
def measure(x: Tensor, real: Tensor | None = None, features: Features = flatten) -> dict[str, float]:
    """Every measure of samples x [N, *D], and against real data [M, *D] if there is some, on features.

    Raises GirsanovError if the features are no [N, F].
    """
    fx = _features(x, features)
    found = {name: fn(fx) for name, fn in ONE_SAMPLE.items()}
    if real is not None:
        fy = _features(real, features)
        found |= {name: fn(fx, fy) for name, fn in TWO_SAMPLE.items()}
    return found


def _features(x: Tensor, features: Features) -> Tensor:
    f = features(x)
    if not isinstance(f, Tensor) or f.ndim != 2 or len(f) != len(x):
        got = list(f.shape) if isinstance(f, Tensor) else type(f).__name__
        raise GirsanovError(f"a feature function returns one row a sample, [{len(x)}, F], not {got}")
    return f
