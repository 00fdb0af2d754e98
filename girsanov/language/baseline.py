r"""What single items are compared with: the baseline z of KTO and its relatives, over a whole batch and all processes.

A loss of single items compares a score with z (``girsanov/preferences/pointwise.py``), which is a statistic of the
batch: of micro-batches, or of one process, it would be another number. So it is worked out before the losses, from all
rows of all processes:

==============  ===============================================================================================
baseline        what it costs
==============  ===============================================================================================
mismatched KL   each prompt with the first completion of the next row of the batch, under policy and reference
batch mean      one pass of the policy over the batch, without a graph
midpoint        the same
==============  ===============================================================================================

It is new before *every* update, as published, also where a batch is used several times. Which row is the next does not
depend on how rows are spread over processes: the source of the data says it.

Reference: Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from girsanov.distributed import Reduce
from girsanov.language.base import view
from girsanov.language.batches import ComparedBatch
from girsanov.language.tokens import Completions, pad
from girsanov.policy import Policy
from girsanov.preferences import Compared, PointLoss
from girsanov.preferences.pointwise import MismatchedKL, Zero


def has_baseline(loss: object) -> bool:
    """Whether a loss compares with a statistic of the batch."""
    return isinstance(loss, PointLoss) and not isinstance(loss.baseline, Zero)


def is_mismatched(loss: object) -> bool:
    """Whether that statistic is of prompts with completions of others."""
    return isinstance(loss, PointLoss) and isinstance(loss.baseline, MismatchedKL)


def mismatched(items: Completions, others: Completions, limit: int, filler: int) -> Completions:
    """Each row's prompt with another row's completion, [B, L].

    Args:
        items: prompts with their completions, [B, K, L].
        others: the rows whose completions they get, [B, L'].
        limit: tokens of a row; what does not fit is cut.
        filler: what rows are padded with.
    """
    rows, starts = [], []
    for i in range(len(items)):
        head = items.tokens[i, 0][items.real[i, 0] & ~items.own[i, 0]].tolist()
        rows.append([*head, *others.tokens[i][others.own[i]].tolist()][:limit])
        starts.append(len(head))
    return pad(rows, starts, filler).to(items.tokens.device)


@torch.no_grad()
def baseline(loss: PointLoss, policy: Policy, parts: Sequence[ComparedBatch], reduce: Reduce) -> Tensor:
    """z [] of a batch that is given in parts, under the current weights."""
    model = view(policy, "current")
    if is_mismatched(loss):
        gaps = [model.logp(p.odd) - p.odd_ref for p in parts if p.odd is not None and p.odd_ref is not None]
        mean = reduce.mean(torch.cat(gaps).mean()) if gaps else torch.zeros((), device=policy.device)
        record = Compared(mean.view(1, 1), mismatched=mean)
        return loss.baseline.estimate(record, record.logp, loss.score.beta)
    found = list[tuple[Tensor, ...]]()
    for part in parts:
        record = part.record(part.logp(model), None)
        found.append((loss.score(record), record.signs, record.there.to(record.logp.dtype)))
    s, sign, there = (reduce.gather(torch.cat(column)) for column in zip(*found, strict=True))
    every = Compared(s, sign=sign, valid=there > 0)
    return loss.baseline.estimate(every, s, loss.score.beta)
