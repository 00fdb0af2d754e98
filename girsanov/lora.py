r"""Low-rank adapters through PEFT: ``W -> W + (alpha / rank) B A`` with W frozen, B = 0 at first.

Reference: Hu et al. 2021, arXiv:2106.09685, section 4.1.
"""

from collections.abc import Sequence

import torch
from torch import nn

from girsanov.errors import GirsanovError
from girsanov.models import Model


def linear_layers(net: nn.Module) -> list[str]:
    """The names of all linear layers of a network."""
    return [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]


def add_lora(
    model: Model, rank: int = 8, alpha: int | None = None, targets: Sequence[str] | None = None, seed: int = 0
) -> Model:
    """The model with adapters in its network, which are all that is left trainable.

    The network is changed in place (a large one has no room for a copy) and stays the same function, to the bit, until
    the adapters are trained.

    Args:
        model: its ``net`` is a module.
        rank: of every adapter.
        alpha: scale; the default is the rank, a factor of 1.
        targets: names of layers, or ends of names ("to_q"); by default every linear layer.
        seed: of the factor A.

    Raises:
        GirsanovError: PEFT is missing, the net is no module or has adapters already, or no layer has such a name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        raise GirsanovError(
            "LoRA needs the package peft: pip install 'girsanov[lora]', or tune the full weights"
        ) from None
    net = model.net
    if not isinstance(net, nn.Module):
        raise GirsanovError("adapters go into a torch.nn.Module: give Model(net=module, ...)")
    if any(isinstance(m, BaseTunerLayer) for m in net.modules()):
        raise GirsanovError("the network has adapters already: merge them, or start from the network without them")
    if rank < 1:
        raise GirsanovError(f"the rank of an adapter must be at least 1, not {rank}")
    names = linear_layers(net) if targets is None else list(targets)
    if not names:
        raise GirsanovError("the network has no linear layer for an adapter: name its layers in targets")
    config = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=names, lora_dropout=0.0)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, net)
    except ValueError as error:
        raise GirsanovError(f"no adapter fits targets={names}: {str(error).splitlines()[0]}") from None
    for name, p in net.named_parameters():
        p.requires_grad_("lora_" in name)
    return model
