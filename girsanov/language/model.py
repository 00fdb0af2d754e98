"""A causal language model as something to tune: its network, its tokenizer, log-probs of completions, views.

``LanguageNet`` runs whatever it is asked under the weights it is called with (``net(ask)`` is ``ask(net)``), so that a
policy's views (reference, moving copies) score and generate like the current weights: ``torch.func.functional_call``
replaces parameters in a forward pass, and everything here is one.

Any ``transformers`` causal LM fits whose ``base_model`` gives hidden states and whose output embeddings give logits;
the soft caps and scales of Gemma, Cohere and Granite are applied. What is computed from the parts is compared with the
model's own logits when it is wrapped. Rows that are packed need a model that takes attention masks of four dimensions;
that is checked too, where packing is asked for.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from girsanov.adapters.lora import is_linear
from girsanov.distributed import is_split
from girsanov.errors import GirsanovError
from girsanov.language.logprobs import Head, divergence, entropy, token_logp
from girsanov.language.packing import Packed
from girsanov.language.tokens import Completions, Encoder

T = TypeVar("T")


class LanguageNet(nn.Module):
    """A causal LM as one callable.

    Args:
        lm: of ``transformers``.
        chunk: positions whose logits exist at once; None is all.
        packed: tokens of a bin, to pack rows side by side; None pads them.

    Raises:
        GirsanovError: a model whose parts do not give its logits, or that cannot be packed.
    """

    lm: Any

    def __init__(self, lm: nn.Module, chunk: int | None = 1024, packed: int | None = None) -> None:
        super().__init__()
        self.lm, self.chunk, self.packed = lm, chunk, packed
        self.gradient_checkpointing = True  # logits are made again in the backward pass (policy.py reads the name)
        check(self)

    def forward(self, ask: Callable[["LanguageNet"], T]) -> T:
        """What is asked, under the weights at hand."""
        return ask(self)

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.lm.config

    @property
    def vocabulary(self) -> int:
        """How many tokens it knows."""
        return int(self.lm.get_output_embeddings().weight.shape[0])

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., H]."""
        logits = self.lm.get_output_embeddings()(hidden)
        if (scale := getattr(self.config, "logit_scale", None)) is not None:
            logits = logits * scale
        if (scale := getattr(self.config, "logits_scaling", None)) is not None:
            logits = logits / scale
        if (cap := getattr(self.config, "final_logit_softcapping", None)) is not None:
            logits = cap * torch.tanh(logits / cap)
        return logits

    def hidden(self, batch: Completions) -> Tensor:
        """Hidden states [N, H] from which the N tokens of the completions are predicted, row by row."""
        if self.packed is None:
            place = (batch.real.long().cumsum(1) - 1).clamp_min(0)
            states = self._states(batch.tokens, batch.real.long(), place)
        else:
            bins = Packed.of(batch.real, self.packed)
            mask = bins.mask(next(self.lm.parameters()).dtype)
            out = self._states(bins.gather(batch.tokens), mask, bins.column)
            states = bins.scatter(out, (batch.tokens.shape[0], batch.tokens.shape[1]))
        return states[:, :-1][batch.own[:, 1:]]

    def _states(self, tokens: Tensor, mask: Tensor, place: Tensor) -> Tensor:
        out = self.lm.base_model(input_ids=tokens, attention_mask=mask, position_ids=place, use_cache=False)
        return out.last_hidden_state

    def token_logp(self, batch: Completions) -> Tensor:
        """Log-probs [B, L] of the completions' tokens, float32 at least; 0 elsewhere."""
        found = token_logp(
            self.head, self.hidden(batch), batch.tokens[batch.own], self.chunk, bool(self.gradient_checkpointing)
        )
        return spread(found, batch.own)


def spread(values: Tensor, own: Tensor) -> Tensor:
    """Values [N] of scored tokens in their places, [B, L]; 0 elsewhere."""
    return values.new_zeros(own.shape).masked_scatter(own, values)


@torch.no_grad()
def check(net: LanguageNet) -> None:
    """Compares what is computed from the parts with the model's own logits, packed rows with plain ones."""
    if getattr(net.lm, "get_output_embeddings", lambda: None)() is None:
        raise GirsanovError(f"{type(net.lm).__name__} has no output embeddings: give a causal language model")
    was = net.lm.training
    net.lm.eval()
    device = next(net.lm.parameters()).device
    ids = torch.arange(6, device=device).remainder(net.vocabulary).unsqueeze(0)
    full = Completions(ids, torch.ones_like(ids) > 0, torch.arange(6, device=device).unsqueeze(0) > 0)
    whole = net.lm(input_ids=ids, use_cache=False).logits[0, :-1]
    packed, net.packed = net.packed, None
    try:
        close(net.head(net.hidden(full)), whole, f"{type(net.lm).__name__}'s logits are not made by its head from its")
        if packed is not None:
            two = Completions(ids.repeat(2, 1), full.real.repeat(2, 1), full.own.repeat(2, 1))
            net.packed = 12
            said = f"{type(net.lm).__name__} does not take packed rows: use packed=None, or another attention; its"
            try:
                found = net.head(net.hidden(two))
            except (TypeError, ValueError, RuntimeError) as error:
                raise GirsanovError(f"{said} error was {str(error).splitlines()[0]}") from error
            close(found, whole.repeat(2, 1), said)
    finally:
        net.packed = packed
        net.lm.train(was)


def close(found: Tensor, expected: Tensor, said: str) -> None:
    """Raises GirsanovError unless two tables of logits agree up to the rounding of their dtype."""
    spread_of = float(expected.float().std()) + 1e-6
    gap = float((found.float() - expected.float()).abs().max())
    least = torch.finfo(expected.dtype).eps
    if not gap <= 2000 * least * spread_of + 1e-6:
        raise GirsanovError(f"{said} hidden states (they differ by {gap:.2g})")


@dataclass(frozen=True)
class LanguageModel:
    """What a policy tunes: a network and how texts become rows.

    Attributes:
        net: a ``LanguageNet``, or a view of one.
        encoder: the tokenizer.
        autocast: dtype of the network's arithmetic, or None.
        reference: another model as the reference, with the same tokens; None is this one before tuning.
    """

    net: Any
    encoder: Encoder
    autocast: torch.dtype | None = None
    reference: "LanguageModel | None" = None

    def __post_init__(self) -> None:
        if isinstance(self.net, LanguageNet):
            words = len(self.encoder.tokenizer)
            if words > self.net.vocabulary:
                raise GirsanovError(
                    f"the tokenizer has {words} tokens and the model {self.net.vocabulary}: they do not belong "
                    "together, or the model needs resize_token_embeddings"
                )
            limit = getattr(self.net.config, "max_position_embeddings", None)
            if limit is not None and self.encoder.max_length > limit:
                object.__setattr__(self, "encoder", self.encoder.with_length(int(limit)))

    def ask(self, what: Callable[[LanguageNet], T]) -> T:
        """What is asked of the network, in the dtype of its arithmetic."""
        if self.autocast is None:
            return self.net(what)
        with torch.autocast(self.device.type, dtype=self.autocast):
            return self.net(what)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        net = self.net if isinstance(self.net, nn.Module) else self.net.net
        return next(net.parameters()).device

    @property
    def split(self) -> bool:
        """Whether the network is split over processes, which then run it together."""
        net = self.net if isinstance(self.net, nn.Module) else self.net.net
        return any(is_split(p) for p in net.parameters())

    def token_logp(self, batch: Completions) -> Tensor:
        """Log-probs [B, L] of the completions' tokens, 0 elsewhere."""
        return self.ask(lambda net: net.token_logp(batch))

    def logp(self, batch: Completions) -> Tensor:
        """Log-probs [B] of completions."""
        return self.token_logp(batch).sum(1)

    @torch.no_grad()
    def mean_entropy(self, batch: Completions) -> Tensor:
        """Mean entropy [B] of the next-token laws along completions."""
        found = self.ask(lambda net: spread(entropy(net.head, net.hidden(batch), net.chunk), batch.own))
        return found.sum(1) / batch.length.clamp_min(1)

    def divergence_from(self, other: "LanguageModel", batch: Completions) -> Tensor:
        """``sum_t KL(other || this)`` along completions, [B]."""
        head, fixed = other.laws(batch)

        def ask(net: LanguageNet) -> Tensor:
            again = bool(net.gradient_checkpointing)
            return spread(divergence(net.head, net.hidden(batch), head, fixed, net.chunk, again), batch.own)

        return self.ask(ask).sum(1)

    @torch.no_grad()
    def laws(self, batch: Completions) -> tuple[Head, Tensor]:
        """What gives the logits of the completions' N tokens, and of what: the head, of hidden states [N, H].

        A network that is split over processes has no head outside its own passes: there they are the logits, [N, V].
        """
        if self.split:
            return nn.Identity(), self.ask(lambda net: net.head(net.hidden(batch)))
        return lambda h: self.ask(lambda net: net.head(h)), self.ask(lambda net: net.hidden(batch))

    def with_net(self, net: Any) -> "LanguageModel":
        """The same with another network."""
        return dataclasses.replace(self, net=net)


def lora_targets(net: LanguageNet) -> list[str]:
    """The layers that adapters are usually added to: all linear ones but the head."""
    head = net.lm.get_output_embeddings()
    return [n for n, m in net.named_modules() if m is not head and is_linear(m)]
