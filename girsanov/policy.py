r"""The model being tuned, with its frozen reference and its moving copies, as views that share what they can.

A view is a ``Model``. Nothing is switched to make one: a view runs the same modules with other parameter tensors
(``torch.func.functional_call``), so views can be mixed freely within one graph, under activation checkpointing of
whole passes and while others are alive. Moving copies ("ema", "old") hold the trainable parameters only.

The reference of a LoRA parameter costs nothing: it is the adapted network with every ``lora_B`` at zero, equal to the
bit to the network without adapters. Of any other trainable parameter a frozen copy is kept.

``strength`` moves between reference and tuned: ``theta_ref + c (theta - theta_ref)``, and ``c B A`` with LoRA.

Checkpointing *inside* a network recomputes its blocks during the backward pass, when the parameters of a view are gone
again: the gradient would silently be that of the current weights. Views other than "current" therefore switch the
``gradient_checkpointing`` flag of submodules (the convention of diffusers and transformers) off while they run.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from girsanov.errors import GirsanovError
from girsanov.models import Guided, Model

USES = ("rollout", "adjoint", "train")
"""What a view is used for; each may be guided on its own."""


class Tunable(Protocol):
    """What a policy needs of a model: a dataclass with its network in ``net``."""

    @property
    def net(self) -> Any: ...


class Policy:
    """Trainable parameters, their reference and their moving copies.

    Args:
        model: its ``net`` is a module; the parameters that require a gradient are tuned (all of them, or adapters). It
            is put in evaluation mode: dropout would make every pass another function. Besides a generative ``Model``
            it may be an ``Actor``, a policy over the actions of an environment: it has views, and no guidance.
        guidance: scale of classifier-free guidance per use: "rollout", "adjoint", "train"; a missing use is unguided.

    Raises:
        GirsanovError: a net that is no module, nothing to train, an unknown use of guidance.
    """

    def __init__(self, model: Tunable, guidance: Mapping[str, float] | None = None) -> None:
        if not isinstance(model.net, nn.Module):
            raise GirsanovError("a policy tunes the parameters of a torch.nn.Module: give Model(net=module, ...)")
        self.model: Any = model
        self.net: nn.Module = model.net.eval()
        self.guidance = dict(guidance or {})
        unknown = set(self.guidance) - set(USES)
        if unknown:
            raise GirsanovError(f"guidance is set for {', '.join(USES)}, not for {', '.join(sorted(unknown))}")
        self._trained = {name: p for name, p in self.net.named_parameters() if p.requires_grad}
        self.names = list(self._trained)
        if not self.names:
            raise GirsanovError("no parameter requires a gradient: unfreeze the network or add adapters before tuning")
        self._blocks = [m for m in self.net.modules() if hasattr(m, "gradient_checkpointing")]
        self.copies: dict[str, dict[str, Tensor]] = {}
        self._reference = {n: w for n, w in self._snapshot().items() if not is_lora(n)}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of samples and of step arithmetic: float32, or float64 if the parameters are."""
        return torch.float64 if self.parameters()[0].dtype == torch.float64 else torch.float32

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.parameters()[0].device

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in a fixed order."""
        return list(self._trained.values())

    def _snapshot(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in zip(self.names, self.parameters(), strict=True)}

    def _weights(self, name: str) -> dict[str, Tensor]:
        if name == "current":
            return dict(self._trained)
        if name not in self.copies:
            known = ", ".join(["current", "reference", *self.copies])
            raise GirsanovError(f"the policy has no view {name!r}: it has {known} (keep_copy makes one)")
        return self.copies[name]

    def _scaled(self, name: str, w: Tensor, strength: float) -> Tensor:
        if is_lora(name):
            return strength * w if "lora_B" in name else w
        return torch.lerp(self._reference[name], w, strength)

    def _reference_weights(self) -> dict[str, Tensor]:
        current = self._weights("current")
        return {n: (self._scaled(n, w.detach(), 0.0) if is_lora(n) else self._reference[n]) for n, w in current.items()}

    def view(self, name: str = "current", use: str | None = None, strength: float = 1.0) -> Model | Guided:
        """The model with the weights of a view: "current", "reference", or a moving copy ("ema", "old").

        Args:
            name: whose weights.
            use: "rollout", "adjoint" or "train": picks the guidance set for that use.
            strength: 0 is the reference, 1 the named weights, more extrapolates.
        """
        weights = self._reference_weights() if name == "reference" else self._weights(name)
        if name != "reference" and strength != 1.0:
            weights = {n: self._scaled(n, w, strength) for n, w in weights.items()}
        live = name == "current" and strength == 1.0
        model = self.model if live else dataclasses.replace(self.model, net=Frozen(self.net, weights, self._blocks))
        if use is not None and use not in USES:
            raise GirsanovError(f"a view is used for {', '.join(USES)}, not for {use}")
        scale = self.guidance.get(use, 1.0) if use else 1.0
        return model if scale == 1.0 else Guided(model, scale)

    @torch.no_grad()
    def keep_copy(self, name: str) -> None:
        """Starts (or restarts) a moving copy at the current weights."""
        self.copies[name] = self._snapshot()

    @torch.no_grad()
    def move_copy(self, name: str, decay: float) -> None:
        """``copy <- decay copy + (1 - decay) current``."""
        for kept, p in zip(self.copies[name].values(), self.parameters(), strict=True):
            kept.lerp_(p.detach(), 1.0 - decay)

    @torch.no_grad()
    def load(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Writes saved weights into "current" or a moving copy. Raises if names or shapes differ."""
        if set(weights) != set(self.names):
            raise GirsanovError("the saved weights belong to another network: their parameter names differ")
        current = self._trained
        for key, p in current.items():
            if weights[key].shape != p.shape:
                raise GirsanovError(f"the saved weights belong to another network: {key} has another shape")
        if name == "current":
            for key, p in current.items():
                p.copy_(weights[key])
        else:
            self.copies[name] = {key: weights[key].to(p).clone() for key, p in current.items()}

    def state(self, name: str = "current") -> dict[str, Tensor]:
        """The trainable weights of a view, detached."""
        return {n: w.detach() for n, w in self._weights(name).items()}


class Frozen:
    """A network called with other parameter tensors than its own.

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
    """Switches checkpointing inside a network off while it runs (the module's docstring says why)."""
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


def trainable_copy(model: Model) -> Model:
    """The model with its own copy of the network, every parameter trainable."""
    net = copy.deepcopy(model.net)
    if isinstance(net, nn.Module):
        net.requires_grad_(True)
    return dataclasses.replace(model, net=net)
