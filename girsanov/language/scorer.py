"""A reward model on a language model: a linear head on the hidden state of a text's last token.

``(token ids [N, L], cond) -> scores [N]``, padded with ``filler``; the shape that ``girsanov/reward_models`` trains:

    net = Members([LanguageScorer(lm, encoder.filler)])
    fit(Policy(Scoring(net)), RewardModelling(), scorer_rows(encoder, rows), TrainConfig(...))

With adapters (``add_lora``) the head must stay trainable: ``unfreeze_head``. The head starts at zero, so the first loss
is log 2.

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
        self.head = nn.Linear(self.lm.config.hidden_size, 1, dtype=like.dtype, device=like.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, cond: Cond | None = None) -> Tensor:
        """Scores [N] of token ids [N, L]."""
        length = x.shape[1] - (x.flip(1) != self.filler).long().argmax(1)
        real = torch.arange(x.shape[1], device=x.device) < length[:, None]
        place = (real.long().cumsum(1) - 1).clamp_min(0)
        out = self.lm.base_model(input_ids=x, attention_mask=real.long(), position_ids=place, use_cache=False)
        last = out.last_hidden_state[torch.arange(len(x), device=x.device), length - 1]
        return self.head(last)[:, 0]

    def unfreeze_head(self) -> None:
        """Makes the head trainable, after adapters froze everything."""
        self.head.requires_grad_(True)


def scorer_rows(encoder: Encoder, rows: Sequence[tuple[Prompt, Sequence[str]]], **more: Any) -> Comparisons:
    """Comparisons of prompts with the same number of completions each, best first, as token ids [N, K, L].

    The end token is left out where it is the padding too. Raises GirsanovError with the row of what is wrong.
    """
    counts = {len(c) for _, c in rows}
    if len(counts) != 1 or min(counts) < 2:
        raise GirsanovError("every row needs the same number of completions, two or more")
    ids = [encoder.row(p, c, f"row {i}")[0] for i, (p, items) in enumerate(rows) for c in items]
    kept = [row[:-1] if row[-1] == encoder.filler and len(row) > 1 else row for row in ids]
    longest = max(map(len, kept))
    table = torch.tensor([row + [encoder.filler] * (longest - len(row)) for row in kept])
    return Comparisons(table.unflatten(0, (len(rows), counts.pop())), **more)
