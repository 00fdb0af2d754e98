r"""Sums over the data dimensions of a sample, accumulated in float64 whatever the dtype of the states.

A log-ratio of 1e-3 is what is left of 262 144 terms of either sign: a float32 sum loses it. The sums here go over
blocks that stay in the processor's cache, add the products of blocks element by element and then that one block in
float64, so a tensor is read once and no intermediate of its size is written. Their derivatives are written down
(``autograd`` would keep every intermediate):

.. math:: S(a, b) = |a - b|^2, \qquad \partial_a S = 2 (a - b)

.. math:: C(m, o, x) = \langle \delta,\, x - o - \delta / 2 \rangle = \tfrac12 (|x - o|^2 - |x - m|^2), \quad
          \delta = m - o

with ``dC/dm = x - m``, ``dC/do = -(x - o)``, ``dC/dx = m - o``. C is formed from delta, so that it is exactly 0 for
equal means and a small value is not the difference of two large ones.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.precision import widest

Reduction = Literal["sum", "mean"]
"""Over the data dimensions: the sum (a true log density) or the mean (what most published code takes)."""

BLOCK = 1 << 16
"""Elements of a block on a CPU: three float32 buffers of it fit into a second-level cache."""


def _blockwise(factors: Callable[..., tuple[Tensor, Tensor]], *tensors: Tensor) -> Tensor:
    """Sum of a product of two ``factors(*blocks, out, spare)`` over the data: float64 [B] (float32 on MPS).

    The products of a row's blocks are added element by element, in a buffer of one block, which is then summed in
    float64: a chain of float32 additions is as long as there are blocks in a row.
    """
    flat = [t.detach().reshape(len(t), -1) for t in tensors]
    rows, width = flat[0].shape
    on_host = flat[0].device.type == "cpu"  # an accelerator is fed whole tensors: small kernels would starve it
    cols = min(width, BLOCK) if on_host else width
    high = max(1, min(rows, BLOCK // max(cols, 1))) if on_host else rows
    wide = widest(flat[0].device)
    scratch = torch.promote_types(flat[0].dtype, torch.float32)
    sums, out, spare = (flat[0].new_empty(high, cols, dtype=scratch) for _ in range(3))
    total = torch.empty(rows, dtype=wide, device=flat[0].device)
    for top in range(0, rows, high):
        part = total[top : top + high]
        for left in range(0, width, cols):
            blocks = [t[top : top + high, left : left + cols] for t in flat]
            h, w = blocks[0].shape
            a, b = factors(*blocks, out[:h, :w], spare[:h, :w])
            if left == 0:
                torch.mul(a, b, out=sums[:h])
            else:
                sums[:h, :w].addcmul_(a, b)
        torch.sum(sums[: len(part)], 1, dtype=wide, out=part)
    return total


def _square_factors(a: Tensor, b: Tensor, out: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sub(a, b, out=out), out


def _cross_factors(mean: Tensor, old: Tensor, x: Tensor, out: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    torch.sub(mean, old, out=delta)
    return torch.sub(x, old, out=out).sub_(delta, alpha=0.5), delta


def _per_sample(g: Tensor, like: Tensor) -> Tensor:
    return g.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return _blockwise(_square_factors, a, b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        slope = (a - b) * _per_sample(2 * grads[0], a)
        return slope, -slope


class _Cross(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, old: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(mean, old, x)
        return _blockwise(_cross_factors, mean, old, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        mean, old, x = ctx.saved_tensors
        g, (need_mean, need_old, need_x) = _per_sample(grads[0], mean), ctx.needs_input_grad
        return (
            (x - mean) * g if need_mean else None,
            (old - x) * g if need_old else None,
            (mean - old) * g if need_x else None,
        )


def _reduced(total: Tensor, like: Tensor, reduce: Reduction) -> Tensor:
    return total if reduce == "sum" else total / like[0].numel()


def _same_shapes(*tensors: Tensor) -> None:
    if any(t.shape != tensors[0].shape for t in tensors):
        shapes = ", ".join(str(list(t.shape)) for t in tensors)
        raise GirsanovError(
            f"means and states must have one shape [B, *D], got {shapes}: broadcasting would mix samples"
        )


def square_distance(a: Tensor, b: Tensor, reduce: Reduction = "sum") -> Tensor:
    """``|a - b|^2`` of [B, *D] tensors over the data dimensions: float64 [B], differentiable in both."""
    _same_shapes(a, b)
    return _reduced(_Square.apply(a, b), a, reduce)


def cross(mean: Tensor, old: Tensor, x: Tensor, reduce: Reduction = "sum") -> Tensor:
    """``<mean - old, x - (mean + old) / 2>`` over the data dimensions: float64 [B], differentiable in all three."""
    _same_shapes(mean, old, x)
    return _reduced(_Cross.apply(mean, old, x), mean, reduce)
