r"""Low-rank adapters: train ``W + (alpha / r) B A`` with ``B = 0`` at the start, and nothing else.

Hu et al. 2021, arXiv:2106.09685, section 4.1. The adapters are peft's. By default ``alpha = r``, so the scale is 1 and
the policy's strength is the only dial.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import nn

from girsanov.errors import GirsanovError


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer: torch's, or GPT-2's transposed one (``transformers``' Conv1D)."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def add_lora(
    net: object, rank: int = 8, targets: Sequence[str] | None = None, seed: int = 0, alpha: int | None = None
) -> None:
    """Freezes a network and adds adapters to its linear layers, in place (a large one has no room for a copy).

    The network stays the same function, to the bit, until the adapters are trained.

    Args:
        net: a torch.nn.Module.
        rank: r.
        targets: names of the layers, or ends of names; all linear layers by default.
        seed: of the initial values of A.
        alpha: scale of the adapters times r; r by default.

    Raises:
        GirsanovError: peft is not installed, no layer fits, or the network has adapters already.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise GirsanovError("adapters need the package peft: pip install 'girsanov[lora]'") from None
    if not isinstance(net, nn.Module):
        raise GirsanovError("adapters are added to a torch.nn.Module: give Model(net=module, ...)")
    if any("lora_" in name for name, _ in net.named_parameters()):
        raise GirsanovError("the network has adapters already: give it without")
    if rank < 1:
        raise GirsanovError(f"the rank of an adapter must be at least 1, not {rank}")
    names = [name for name, module in net.named_modules() if is_linear(module)]
    chosen = [n for n in names if targets is None or any(n == t or n.endswith(f".{t}") for t in targets)]
    if not chosen:
        raise GirsanovError(
            f"no linear layer is called {', '.join(targets or ())}: there are {', '.join(names) or 'none'}"
        )
    device = next(net.parameters()).device
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # peft finds out by itself, and says so
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=chosen), net)
    net.to(device)
    for name, p in net.named_parameters():
        p.requires_grad_("lora_" in name)
