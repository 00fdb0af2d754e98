r"""Conjugate gradients for a batch of systems ``M p = b`` with M self-adjoint in the inner product of a matrix G.

``<a, b>_G = a^T G b``. For ``M = I - H G / lam`` with symmetric H and G, ``G M`` is symmetric, so the textbook
recursion holds with every inner product taken in G; carrying ``G d`` beside the direction d costs one product with G a
step.

Reference: Hestenes & Stiefel 1952, "Methods of conjugate gradients for solving linear systems".
"""

from collections.abc import Callable

import torch
from torch import Tensor

from girsanov.predictions import scale


def conjugate_gradients(
    apply: Callable[[Tensor, Tensor], Tensor],
    gramian: Callable[[Tensor], Tensor],
    p: Tensor,
    residual: Tensor,
    steps: int,
) -> Tensor:
    """``p + M^{-1} residual`` for every sample, ``M d = apply(d, G d)`` self-adjoint in the inner product of G.

    A sample stops where the curvature is not positive or its residual is down to rounding.
    """

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1)

    direction, mapped = residual, gramian(residual)
    size = inner(residual, mapped)
    floor = size * torch.finfo(p.dtype).eps ** 2
    for n in range(steps):
        image = apply(direction, mapped)
        curvature = inner(mapped, image)
        moves = (curvature > 0) & (size > floor)
        length = torch.where(moves, size / curvature, 0.0)
        p = p + scale(length, p) * direction
        residual = residual - scale(length, p) * image
        if n + 1 < steps:
            z = gramian(residual)
            after = inner(residual, z)
            ratio = scale(torch.where(moves, after / size, 0.0), p)
            direction, mapped = residual + ratio * direction, z + ratio * mapped
            size = torch.where(moves, after, 0.0)
    return p
