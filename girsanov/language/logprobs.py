r"""Log-probs of given tokens without a table of all tokens: the softmax over the vocabulary, some positions at a time.

.. math:: \log p(y_i | x_i) = z_{y_i} - \log \sum_v e^{z_v}, \qquad z = head(h_i)

With N positions and V words the table z has N V numbers, and the backward pass wants it again, as the softmax. Here
``chunk`` positions pass at a time; with ``recompute`` their table is dropped and made again in the backward pass, so
that at most ``chunk V`` numbers exist at once, for one more product with the head. Value and gradient are the same.

The softmax is in float32 at least. Only positions that are scored come here: those of the prompt never do.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]
"""Hidden states [n, H] to logits [n, V]."""


def wide(logits: Tensor) -> Tensor:
    """In float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def chunked(part: Callable[..., Tensor], tensors: tuple[Tensor, ...], chunk: int | None, recompute: bool) -> Tensor:
    """``part(*rows)`` for some rows of the tensors at a time, stacked; ``chunk`` of None takes all at once."""
    n = len(tensors[0])
    if chunk is None or n <= chunk:
        pieces = [tensors]
    else:
        pieces = list(zip(*(t.split(chunk) for t in tensors), strict=True))
    again = recompute and torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    out = [checkpoint(part, *p, use_reentrant=False) if again else part(*p) for p in pieces]
    return torch.cat([o if isinstance(o, Tensor) else torch.empty(0) for o in out])


def token_logp(head: Head, hidden: Tensor, targets: Tensor, chunk: int | None = 1024, recompute: bool = True) -> Tensor:
    """Log-probs [N] of tokens int64 [N] at hidden states [N, H]."""

    def part(h: Tensor, y: Tensor) -> Tensor:
        return -F.cross_entropy(wide(head(h)), y, reduction="none")

    return chunked(part, (hidden, targets), chunk, recompute)


def entropy(head: Head, hidden: Tensor, chunk: int | None = 1024) -> Tensor:
    """Entropies [N] of the next-token laws at hidden states [N, H]."""

    def part(h: Tensor) -> Tensor:
        log_p = wide(head(h)).log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)

    return chunked(part, (hidden,), chunk, False)


def divergence(
    head: Head, hidden: Tensor, other_head: Head, other: Tensor, chunk: int | None = 1024, recompute: bool = True
) -> Tensor:
    """``KL(other || this)`` of the next-token laws at every position, [N]; no gradient flows to the other."""

    def part(h: Tensor, o: Tensor) -> Tensor:
        with torch.no_grad():
            log_q = wide(other_head(o)).log_softmax(-1)
        return (log_q.exp() * (log_q - wide(head(h)).log_softmax(-1))).sum(-1)

    return chunked(part, (hidden, other), chunk, recompute)
