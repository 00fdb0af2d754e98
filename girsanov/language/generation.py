"""Sampling completions, with noise that belongs to the sample.

Every sample has a uniform number a token from its own stream (seed, iteration, id), and the token is where the
cumulative law passes it: one process and two, one batch and several, and a resumed run draw the same completions.
Prompts are padded at their start, keys and values are cached, and rows that have ended wait for the others. So do
processes, where the network is split over them: one that is done makes passes of a single token until all are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from girsanov.distributed import everywhere
from girsanov.errors import GirsanovError
from girsanov.language.model import LanguageModel, LanguageNet
from girsanov.language.tokens import Completions, pad
from girsanov.noise import Noise
from girsanov.precision import as_wide, onto

NextLaw = Callable[[Tensor, Tensor, Tensor, Any], tuple[Tensor, Any]]
"""``law(tokens [B, n], mask [B, N], places [B, n], cache) -> (logits of the next token [B, V], cache)``: the texts are
N tokens long, of which the last n are new to the cache."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: of the softmax; 0 takes the likeliest token.
        top_k: only the k likeliest; None is all.
        top_p: only the likeliest that together have this probability; None is all.
        max_tokens: of a completion; one that has not ended by then is cut, without an end token.

    Anything but temperature 1 and all tokens draws from another law than the model's: policy gradients are then off
    policy.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    max_tokens: int = 64

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.max_tokens < 1:
            raise GirsanovError("sampling needs a temperature of at least 0, and max_tokens of at least 1")
        if (self.top_k is not None and self.top_k < 1) or (self.top_p is not None and not 0 < self.top_p <= 1):
            raise GirsanovError("top_k must be at least 1, and top_p lie in (0, 1]")

    def pick(self, logits: Tensor, u: Tensor) -> Tensor:
        """Tokens [B] for logits [B, V] and uniform numbers [B]."""
        if self.temperature == 0:
            return logits.argmax(-1)
        p = (as_wide(logits) / self.temperature).softmax(-1)
        if self.top_k is not None or self.top_p is not None:
            p = torch.where(self._kept(p), p, torch.zeros_like(p))
        total = p.cumsum(-1)
        return (total <= u.to(p).unsqueeze(1) * total[:, -1:]).sum(-1).clamp_max(p.shape[1] - 1)

    def _kept(self, p: Tensor) -> Tensor:
        """Which tokens may be drawn, bool [B, V]; the likeliest always may."""
        order = p.sort(-1, descending=True)
        kept = torch.ones_like(p, dtype=torch.bool)
        if self.top_k is not None:
            kept[:, self.top_k :] = False
        if self.top_p is not None:
            kept &= order.values.cumsum(-1) - order.values < self.top_p
        return torch.zeros_like(kept).scatter(-1, order.indices, kept)


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    noise: Noise,
    sampling: Sampling,
    law: NextLaw | None = None,
) -> Completions:
    """Completions of prompts (token ids), one each, [B, L].

    Args:
        model: a view of a policy.
        prompts: at least one token each.
        noise: the stream of every sample.
        sampling: how tokens are drawn.
        law: what they are drawn from; the model's own by default.
    """
    room = model.encoder.max_length - max(map(len, prompts))
    if room < 1:
        raise GirsanovError("a prompt fills the whole row: shorten it, or raise max_length")
    steps = min(sampling.max_tokens, room)
    u = noise.uniform((steps,))
    end, filler = model.encoder.end, model.encoder.filler
    over = partial(everywhere, device=model.device) if model.split else bool
    how = (prompts, onto(u, model.device), sampling, end, filler, over)
    drawn = model.ask(lambda net: _walk(partial(ahead, net), *how)) if law is None else _walk(law, *how)
    rows = [[*p, *_until(ids, model.encoder.end)] for p, ids in zip(prompts, drawn.tolist(), strict=True)]
    return pad(rows, [len(p) for p in prompts], model.encoder.filler).to(model.device)


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids


def ahead(net: LanguageNet, tokens: Tensor, mask: Tensor, place: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """A network's law of the next token, as ``NextLaw`` says."""
    out = net.lm.base_model(
        input_ids=tokens, attention_mask=mask, position_ids=place, past_key_values=cache, use_cache=True
    )
    return net.head(out.last_hidden_state[:, -1]), out.past_key_values


def _walk(
    law: NextLaw,
    prompts: Sequence[Sequence[int]],
    u: Tensor,
    sampling: Sampling,
    end: int,
    filler: int,
    over: Callable[[bool], bool],
) -> Tensor:
    """Tokens [B, T] after the prompts; ``over(mine)`` says whether all are done, given whether these rows are."""
    device = u.device
    longest = max(map(len, prompts))
    tokens = torch.tensor([[filler] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    place, cache = (mask.cumsum(1) - 1).clamp_min(0), None
    done, drawn = torch.zeros(len(prompts), dtype=torch.bool, device=device), list[Tensor]()
    idle = tokens[:1, -1:], torch.ones_like(mask[:1, -1:]), torch.zeros_like(place[:1, -1:])
    for t in range(u.shape[1]):
        logits, cache = law(tokens, mask, place, cache)
        picked = sampling.pick(logits, u[:, t])
        drawn.append(torch.where(done, torch.full_like(picked, end), picked))
        done = done | (picked == end)
        if bool(done.all()) or t + 1 == u.shape[1]:
            break
        over(False)
        tokens, place = drawn[-1].unsqueeze(1), place[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    while not over(True):
        law(*idle, None)  # a pass is a meeting: the others are not done
    return torch.stack(drawn, 1)
