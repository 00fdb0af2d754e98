"""Where the weights of a policy's views are: one small store, of which there are two kinds.

``Swapped`` (here) holds tensors in the place of the trained parameters and runs one and the same network with them
(``torch.func.functional_call``): a view costs its trained parameters and nothing else. ``Twins`` (``sharding.py``)
keeps a network for each view: where every weight is split over processes, the parameters of a network are gathered by
the network itself, in the backward pass once more, and cannot be replaced from outside.

The reference of a LoRA parameter costs nothing: it is the adapted network with every ``lora_B`` at zero, equal to the
bit to the network without adapters. Of any other trained parameter a frozen copy is kept.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from girsanov.distributed import held, like_split, whole
from girsanov.errors import GirsanovError


class Weights(ABC):
    """Trained parameters, their reference and their moving copies.

    Attributes:
        net: the network being tuned.
        trained: its trained parameters by name, in a fixed order.
        copies: the moving copies, by name: what this process holds of each trained parameter.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
        self.copies: dict[str, dict[str, Tensor]] = {}
        if not self.trained:
            raise GirsanovError("no parameter requires a gradient: unfreeze the network or add adapters before tuning")

    @abstractmethod
    def network(self, name: str, strength: float) -> Any:
        """What is called in the place of the network: it runs with the weights of a view at a strength."""

    @abstractmethod
    def keep(self, name: str) -> None:
        """Starts (or restarts) a moving copy at the current weights."""

    @abstractmethod
    def parameters(self, name: str) -> Mapping[str, Tensor]:
        """The trained parameters of "current" or of a copy as they are kept, split or whole."""

    def move(self, name: str, decay: float) -> None:
        """``copy <- decay copy + (1 - decay) current``."""
        for key, kept in self.copies[name].items():
            kept.lerp_(held(self.trained[key]), 1.0 - decay)

    def put(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Writes whole tensors into "current" or a moving copy. Raises GirsanovError if names or shapes differ."""
        if set(weights) != set(self.trained):
            raise GirsanovError("the saved weights belong to another network: their parameter names differ")
        for key, p in self.trained.items():
            if weights[key].shape != p.shape:
                raise GirsanovError(f"the saved weights belong to another network: {key} has another shape")
        if name != "current":
            self.keep(name)
        target = self.parameters(name)
        for key, p in self.trained.items():
            held(target[key]).copy_(held(like_split(weights[key].to(p.device), p)))

    def state(self, name: str, keep: bool = True) -> dict[str, Tensor]:
        """Whole trained tensors of a view, detached; gathered ones are on the host, and left out unless ``keep``."""
        found = {key: whole(p.detach(), keep) for key, p in self.parameters(name).items()}
        return {key: p for key, p in found.items() if p is not None}

    def known(self, name: str) -> None:
        """Raises GirsanovError unless a name is "current" or that of a copy."""
        if name not in ("current", *self.copies):
            there = ", ".join(["current", "reference", *self.copies])
            raise GirsanovError(f"the policy has no view {name!r}: it has {there} (keep_copy makes one)")


class Swapped(Weights):
    """One network that runs with other tensors in the place of its trained parameters."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self._blocks = [m for m in net.modules() if hasattr(m, "gradient_checkpointing")]
        self.reference = {n: p.detach().clone() for n, p in self.trained.items() if not is_lora(n)}

    def network(self, name: str, strength: float) -> Any:
        """The network itself for the current weights, else ``Frozen``."""
        if name == "current" and strength == 1.0:
            return self.net
        return Frozen(self.net, self._at(name, strength), self._blocks)

    def keep(self, name: str) -> None:
        """New tensors: a view of the copy that was there before keeps its own."""
        self.copies[name] = {n: p.detach().clone() for n, p in self.trained.items()}

    def parameters(self, name: str) -> Mapping[str, Tensor]:
        """The tensors of "current" or of a copy."""
        self.known(name)
        return self.trained if name == "current" else self.copies[name]

    def _at(self, name: str, strength: float) -> Mapping[str, Tensor]:
        if name == "reference":
            none = {n: at_strength(n, p.detach(), 0.0) for n, p in self.trained.items() if is_lora(n)}
            return {n: none[n] if is_lora(n) else self.reference[n] for n in self.trained}
        weights = self.parameters(name)
        if strength == 1.0:
            return weights
        return {n: at_strength(n, w, strength, self.reference.get(n)) for n, w in weights.items()}


class Frozen:
    """A network called with other parameter tensors than its own.

    Checkpointing *inside* a network recomputes its blocks during the backward pass, when the tensors are gone again:
    the gradient would silently be that of the current weights. The ``gradient_checkpointing`` flag of submodules (the
    convention of diffusers and transformers) is therefore off while it runs.

    Args:
        net: the network.
        weights: tensors in the place of its parameters.
        blocks: its submodules that may checkpoint themselves.
    """

    def __init__(self, net: nn.Module, weights: Mapping[str, Tensor], blocks: Sequence[nn.Module] = ()) -> None:
        self.net, self.weights, self.blocks = net, dict(weights), blocks

    def __call__(self, *inputs: Any) -> Any:
        with stored_activations(self.blocks):
            return functional_call(self.net, self.weights, inputs)


@contextmanager
def stored_activations(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Switches checkpointing inside a network off while it runs (``Frozen`` says why)."""
    on = [block for block in blocks if block.gradient_checkpointing]
    for module in on:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in on:
            module.gradient_checkpointing = True  # type: ignore[assignment]


def is_lora(name: str) -> bool:
    """Whether a parameter belongs to a low-rank adapter (PEFT's names)."""
    return "lora_A" in name or "lora_B" in name


def at_strength(name: str, w: Tensor, strength: float, reference: Tensor | None = None) -> Tensor:
    """``w_ref + strength (w - w_ref)``; of an adapter, B times the strength and A as it is."""
    if is_lora(name):
        return strength * w if "lora_B" in name else w
    assert reference is not None
    return torch.lerp(reference, w, strength)
