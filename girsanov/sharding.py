r"""A network whose frozen and trained weights are split over processes (PyTorch's FSDP2, ``fully_shard``).

Every process holds a part of each parameter and gathers a block (a transformer block, a stage of a UNet) when a pass
gets there, forwards and once more backwards. With P processes, N frozen and n trained numbers, and b bytes each, a
process holds about

.. math:: b N / P + 16 n / P \quad\text{bytes for the whole network,}\qquad b N / P + 16 n \quad\text{with adapters}

(weight, gradient and AdamW's two averages of a trained number in float32), and the largest block.

- With adapters alone to train, the frozen network is split and the adapters are not: they are small, views swap them
  as on one process (``weights.Swapped``), and their gradients are averaged as there.
- Otherwise everything is split. The network gathers its own parameters, so they cannot be swapped from outside: the
  reference and each moving copy is a frozen network of its own, split alike (``Twins``). Gradients come out of the
  backward pass as means over the processes.

All processes must run the network equally often and in one order: each pass is a meeting. Reference: Zhao et al. 2023,
arXiv:2304.11277 (PyTorch FSDP); Rajbhandari et al. 2020, arXiv:1910.02054 (ZeRO).
"""

import copy
import inspect
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from girsanov.distributed import held
from girsanov.errors import GirsanovError
from girsanov.weights import Swapped, Weights, at_strength, is_lora

LISTS = (nn.ModuleList, nn.ModuleDict)  # they have no pass of their own, and cannot be gathered for one


class Sharding:
    """Splits a network over all processes, in place; its weights are the same on all of them before.

    A network on the host goes to the device block by block: the device never holds all of it.

    Args:
        net: the network, with the parameters that are trained already chosen.
        device: where it runs.

    Raises:
        GirsanovError: no processes were launched, a PyTorch without what is needed, parameters that cannot be split.
    """

    def __init__(self, net: nn.Module, device: torch.device) -> None:
        if not torch.distributed.is_initialized():
            raise GirsanovError("a network is split over processes: start them with torchrun or accelerate launch")
        trained = [n for n, p in net.named_parameters() if p.requires_grad]
        adapters = all(is_lora(n) for n in trained)
        self.net, self.device = net, device
        self.mesh = torch.distributed.init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        self.skeleton = None if adapters else skeleton(net)
        split(net, self.mesh, [p for n, p in net.named_parameters() if is_lora(n)] if adapters else [])
        net.to(device)

    def weights(self) -> Weights:
        """The store of a policy's views."""
        return Swapped(self.net) if self.skeleton is None else Twins(self)

    @torch.no_grad()
    def twin(self) -> nn.Module:
        """Another network with the same weights, all frozen, split alike."""
        assert self.skeleton is not None
        other = copy.deepcopy(self.skeleton, shared(self.net.buffers()))
        split(other, self.mesh, ())
        buffers = {name: dict(module._buffers) for name, module in other.named_modules()}
        other.to_empty(device=self.device)
        for name, module in other.named_modules():
            module._buffers.update(buffers[name])
        for p, q in zip(other.parameters(), self.net.parameters(), strict=True):
            held(p).copy_(held(q))
        return other.eval()


class Twins(Weights):
    """The reference and every moving copy is a frozen network of its own, split like the one that is tuned.

    A view at another strength is one more, made of the weights of the moment; no gradient goes through it to the
    current weights.
    """

    def __init__(self, sharding: Sharding) -> None:
        super().__init__(sharding.net)
        self.sharding = sharding
        self.twins: dict[str, nn.Module] = {}
        self.reference = sharding.twin()
        for name, p in self.reference.named_parameters():
            if "lora_B" in name:
                held(p.data).zero_()

    def network(self, name: str, strength: float) -> Any:
        """The network that is tuned, or a twin."""
        if name == "reference":
            return self.reference
        self.known(name)
        if strength == 1.0:
            return self.net if name == "current" else self.twins[name]
        return self._at(name, strength)

    @torch.no_grad()
    def _at(self, name: str, strength: float) -> nn.Module:
        other, base = self.sharding.twin(), dict(self.reference.named_parameters())
        for key, p in self._of(other).items():
            held(p).copy_(at_strength(key, held(self.parameters(name)[key]), strength, held(base[key])))
        return other

    def _of(self, net: nn.Module) -> Mapping[str, Tensor]:
        every = dict(net.named_parameters())
        return {name: every[name] for name in self.trained}

    def keep(self, name: str) -> None:
        """The copy's network, made the first time, at the current weights."""
        if name not in self.twins:
            self.twins[name] = self.sharding.twin()
            self.copies[name] = {key: held(p.detach()) for key, p in self._of(self.twins[name]).items()}
        for key, kept in self.copies[name].items():
            kept.copy_(held(self.trained[key]))

    def parameters(self, name: str) -> Mapping[str, Tensor]:
        """The split parameters of "current" or of a copy."""
        self.known(name)
        return self.trained if name == "current" else self._of(self.twins[name])


def split(net: nn.Module, mesh: Any, whole: Collection[nn.Parameter]) -> None:
    """``fully_shard`` on the blocks and on what is left, all but the parameters that stay whole."""
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        fully_shard = None  # type: ignore[assignment]
    if fully_shard is None or "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise GirsanovError(f"splitting a network needs a newer PyTorch than {torch.__version__}: upgrade to 2.13")
    # What stays gathered after a pass without a backward pass would miss the next update: everything is put back.
    how: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": True, "ignored_params": set(whole)}
    try:
        for part in (*blocks(net), net):
            fully_shard(part, **how)
    except AssertionError as error:
        raise GirsanovError(
            f"the network cannot be split over processes ({str(error).strip()}): give the parameters that are trained "
            "one dtype"
        ) from error


def blocks(net: nn.Module) -> list[nn.Module]:
    """What is gathered at a time, inner ones first.

    The classes that diffusers and transformers name in ``_no_split_modules``; in a network that names none, the
    members of its outermost lists of modules.
    """
    names = {name for m in net.modules() for name in getattr(m, "_no_split_modules", None) or ()}
    found = [m for m in net.modules() if type(m).__name__ in names] or list(members(net))
    able = [m for m in found if m is not net and not isinstance(m, LISTS)]
    return [m for m in reversed(able) if any(True for _ in m.parameters())]


def members(net: nn.Module) -> list[nn.Module]:
    """The members of the outermost lists of a network."""
    found = list[nn.Module]()
    for child in net.children():
        found += list(child) if isinstance(child, nn.ModuleList) else members(child)
    return found


def skeleton(net: nn.Module) -> nn.Module:
    """The network without its numbers: frozen parameters on the meta device, the buffers of the network itself."""
    memo = shared(net.buffers())
    for p in net.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
    return copy.deepcopy(net, memo)


def shared(tensors: Any) -> dict[int, Any]:
    """A memo for ``copy.deepcopy`` that leaves tensors as they are."""
    return {id(t): t for t in tensors}
