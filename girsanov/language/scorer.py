"""A reward model on a language model: a linear head on the hidden state of a text's last token.

``(token ids [N, L], cond) -> scores [N]``, padded with ``filler``; the shape that ``girsanov/reward_models`` trains:

    net = Members([LanguageScorer(lm, encoder.filler)])
    fit(Policy(Scoring(net)), RewardModelling(), scorer_rows(encoder, rows), TrainConfig(...))

With adapters (``add_lora``) the head must stay trainable: ``unfreeze_head``. The head starts at zero, so the first loss
is log 2. It is in float32 at least, whatever the model is in. ``girsanov/reward_models/causal.py`` makes such a network
from settings, and keeps what was trained of it.

Reference: Ouyang et al. 2022, arXiv:2203.02155, section 3.4.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from girsanov.errors import GirsanovError
from girsanov.language.tokens import Encoder, Prompt
from girsanov.reward_models.data import Comparisons
from girsanov.types import Cond


class LanguageScorer(nn.Module):
    """A causal LM with a head for one score.

    Args:
        lm: of ``transformers``.
        filler: the padding token; a row may not consist of it alone.
    """

    lm: Any

    def __init__(self, lm: nn.Module, filler: int) -> None:
        super().__init__()
        self.lm, self.filler = lm, filler
        like = next(lm.parameters())
        wide = torch.promote_types(like.dtype, torch.float32)
        self.head = nn.Linear(self.lm.config.hidden_size, 1, dtype=wide, device=like.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, cond: Cond | None = None) -> Tensor:
        """Scores [N] of token ids [N, L]."""
        return self.head(last_states(self.lm, x, self.filler).to(self.head.weight.dtype))[:, 0]

    def unfreeze_head(self) -> None:
        """Makes the head trainable, after adapters froze everything."""
        self.head.requires_grad_(True)


def last_states(lm: Any, x: Tensor, filler: int) -> Tensor:
    """The hidden state of the last token of rows [N, L], padded with ``filler`` at the end, [N, H]."""
    length = x.shape[1] - (x.flip(1) != filler).long().argmax(1)
    x = x[:, : int(length.max())]
    real = torch.arange(x.shape[1], device=x.device) < length[:, None]
    place = (real.long().cumsum(1) - 1).clamp_min(0)
    out = lm.base_model(input_ids=x, attention_mask=real.long(), position_ids=place, use_cache=False)
    return out.last_hidden_state[torch.arange(len(x), device=x.device), length - 1]


def token_rows(
    encoder: Encoder, prompts: Sequence[Prompt], answers: Sequence[str], names: Sequence[str] | None = None
) -> list[list[int]]:
    """Token ids of prompts with their answers; the end token is left out where it is the padding too.

    Raises GirsanovError with the name of what is wrong, "row i" by default.
    """
    names = names or [f"row {i}" for i in range(len(prompts))]
    ids = [encoder.row(p, a, name)[0] for p, a, name in zip(prompts, answers, names, strict=True)]
    return [row[:-1] if row[-1] == encoder.filler and len(row) > 1 else row for row in ids]


def token_complaint(encoder: Encoder, prompt: Prompt, answer: str) -> str | None:
    """Why an answer cannot become a row of tokens, or None."""
    try:
        encoder.row(prompt, answer, "the row")
    except GirsanovError as error:
        return str(error)
    return None


def table(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    """Rows of token ids padded at the end, int64 [N, L]."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])


def scorer_rows(encoder: Encoder, rows: Sequence[tuple[Prompt, Sequence[str]]], **more: Any) -> Comparisons:
    """Comparisons of prompts with the same number of completions each, best first, as token ids [N, K, L].

    Raises GirsanovError with the row of what is wrong.
    """
    counts = {len(c) for _, c in rows}
    if len(counts) != 1 or min(counts) < 2:
        raise GirsanovError("every row needs the same number of completions, two or more")
    k = counts.pop()
    names = [f"row {i}" for i in range(len(rows)) for _ in range(k)]
    prompts, answers = [p for p, _ in rows for _ in range(k)], [c for _, items in rows for c in items]
    ids = token_rows(encoder, prompts, answers, names)
    return Comparisons(table(ids, encoder.filler).unflatten(0, (len(rows), k)), **more)
