r"""The model being tuned, with its frozen reference and its moving copies, as views that share what they can.

A view is a ``Model``. Nothing is switched to make one: each runs with weights of its own (``weights.py``), so views can
be mixed freely within one graph, under activation checkpointing of whole passes and while others are alive. Moving
copies ("ema", "old") hold the trained parameters only.

``strength`` moves between reference and tuned: ``theta_ref + c (theta - theta_ref)``, and ``c B A`` with LoRA.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from girsanov.distributed import held
from girsanov.errors import GirsanovError
from girsanov.models import Guided, Model
from girsanov.sharding import Sharding
from girsanov.weights import Swapped, Weights

Use = Literal["rollout", "adjoint", "train"]
"""What a view is used for; each may be guided on its own."""

USES: tuple[Use, ...] = get_args(Use)
"""All of them."""


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
        sharding: how the network has been split over processes; None where every process holds all of it.

    Raises:
        GirsanovError: a net that is no module, nothing to train, an unknown use of guidance.
    """

    def __init__(
        self, model: Tunable, guidance: Mapping[str, float] | None = None, sharding: Sharding | None = None
    ) -> None:
        if not isinstance(model.net, nn.Module):
            raise GirsanovError("a policy tunes the parameters of a torch.nn.Module: give Model(net=module, ...)")
        self.model: Any = model
        self.net: nn.Module = model.net.eval()
        self.guidance = dict(guidance or {})
        unknown = set(self.guidance) - set(USES)
        if unknown:
            raise GirsanovError(f"guidance is set for {', '.join(USES)}, not for {', '.join(sorted(unknown))}")
        self.weights: Weights = Swapped(self.net) if sharding is None else sharding.weights()
        self.names = list(self.weights.trained)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of samples and of step arithmetic: float32, or float64 if the parameters are."""
        return torch.float64 if self.parameters()[0].dtype == torch.float64 else torch.float32

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.parameters()[0].device

    @property
    def copies(self) -> dict[str, dict[str, Tensor]]:
        """The moving copies by name: what this process holds of each trained parameter."""
        return self.weights.copies

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in a fixed order."""
        return list(self.weights.trained.values())

    def view(self, name: str = "current", use: str | None = None, strength: float = 1.0) -> Model | Guided:
        """The model with the weights of a view: "current", "reference", or a moving copy ("ema", "old").

        Args:
            name: whose weights.
            use: "rollout", "adjoint" or "train": picks the guidance set for that use.
            strength: 0 is the reference, 1 the named weights, more extrapolates.
        """
        net = self.weights.network(name, 1.0 if name == "reference" else strength)
        model = self.model if net is self.net else dataclasses.replace(self.model, net=net)
        if use is not None and use not in USES:
            raise GirsanovError(f"a view is used for {', '.join(USES)}, not for {use}")
        scale = self.guidance.get(use, 1.0) if use else 1.0
        return model if scale == 1.0 else Guided(model, scale)

    @torch.no_grad()
    def keep_copy(self, name: str) -> None:
        """Starts (or restarts) a moving copy at the current weights."""
        self.weights.keep(name)

    @torch.no_grad()
    def move_copy(self, name: str, decay: float) -> None:
        """``copy <- decay copy + (1 - decay) current``."""
        self.weights.move(name, decay)

    @torch.no_grad()
    def load(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Writes saved weights into "current" or a moving copy. Raises if names or shapes differ."""
        self.weights.put(name, weights)

    def state(self, name: str = "current", keep: bool = True) -> dict[str, Tensor]:
        """The whole trainable weights of a view, detached.

        Split ones are gathered on the host, a task of all processes: those that have no use for them say ``keep=False``
        and get an empty dict.
        """
        return self.weights.state(name, keep)

    def held(self, name: str = "current") -> dict[str, Tensor]:
        """What this process holds of the trainable weights of a view, detached: all of them unless they are split."""
        return {n: held(p.detach()) for n, p in self.weights.parameters(name).items()}


def trainable_copy(model: Model) -> Model:
    """The model with its own copy of the network, every parameter trainable."""
    net = copy.deepcopy(model.net)
    if isinstance(net, nn.Module):
        net.requires_grad_(True)
    return dataclasses.replace(model, net=net)
