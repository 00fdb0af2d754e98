r"""Segments of completions that weigh more: what people corrected, word by word (dense DPO, RLHF-V).

A segment ``(start, end, weight)`` counts characters of the completion, the end not included; a token that has a
character in it has its weight w_i, all others 1:

.. math:: \log\pi(y) = \sum_i w_i \log p_i, \qquad N = \sum_i w_i, \qquad h = \beta \Big(
    \frac{D_w}{N_w} - \frac{D_l}{N_l} \Big)

With one weight gamma for all segments this is the published form (``records.completion``); a segment without a weight
of its own has the method's (``emphasis``), which is why its tokens are NaN here. A row without segments weighs 1
everywhere. End tokens and what a chat template adds weigh 1.

Reference: Yu et al. 2023, arXiv:2312.00849, Eq. 2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from girsanov.data.records import Segment
from girsanov.errors import GirsanovError
from girsanov.language.tokens import Encoder, Prompt


def token_weights(
    encoder: Encoder,
    prompt: Prompt,
    completion: str,
    ids: Sequence[int],
    start: int,
    segments: Sequence[Segment],
    where: str,
) -> Tensor:
    """Weights of the tokens of a row (``Encoder.row``), float32 [len(ids)], NaN where the method has to say.

    Raises GirsanovError if a segment lies outside the completion, or the tokenizer cannot say where tokens are.
    """
    weight = torch.ones(len(ids))
    if not segments:
        return weight
    for s in segments:
        if s.end > len(completion):
            raise GirsanovError(
                f"{where}: a segment ends at {s.end}, and its text has {len(completion)} characters: count characters"
            )
    for i, (low, high) in enumerate(places(encoder, prompt, completion, ids[start:], where), start):
        for s in segments:
            if low < s.end and high > s.start:
                weight[i] = torch.nan if s.weight is None else s.weight
    return weight


def places(encoder: Encoder, prompt: Prompt, completion: str, own: Sequence[int], where: str) -> list[tuple[int, int]]:
    """Where the tokens ``own`` of a completion begin and end in it; tokens that are none of its text lie before 0."""
    if not getattr(encoder.tokenizer, "is_fast", False):
        raise GirsanovError(f"{where}: segments need a tokenizer that knows the places of its tokens (a fast one)")
    for text, begin in encoder.texts_of(prompt, completion):
        found = encoder.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        at = _within(list(found.input_ids), list(own), begin, found.offset_mapping)
        if at is not None:
            spans = [(a - begin, b - begin) for a, b in found.offset_mapping[at : at + len(own)]]
            inside = [(max(a, 0), min(b, len(completion))) for a, b in spans]
            return [(a, b) if a < b else (-1, -1) for a, b in inside] + [(-1, -1)] * (len(own) - len(spans))
    raise GirsanovError(f"{where}: the tokens of its completion cannot be found in its text: leave its segments out")


def _within(every: list[int], own: list[int], begin: int, offsets: Sequence[tuple[int, int]]) -> int | None:
    """The first token of the completion in those of a text: the first that reaches beyond ``begin``, and those after it
    are the completion's up to its end token."""
    at = next((i for i, (_, high) in enumerate(offsets) if high > begin), None)
    if at is None:
        return None
    for first in range(at, max(-1, at - 3), -1):
        tail = every[first:]
        n = min(len(tail), len(own))
        if n and tail[:n] == own[:n] and len(own) - n <= 1:
            return first
    return None
