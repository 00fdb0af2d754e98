"""``compile: true``: the trained network through ``torch.compile``.

In place (``nn.Module.compile``), so that its parameters keep their names, and checkpoints and views are those of the
network as it is: a view runs the compiled network with other tensors in the place of its parameters
(``functional_call``). Of a pipeline the network of diffusers itself is compiled, not what is around it: packing and
conditions change their shapes. What is compiled rounds differently, so the numbers of a run are those of another
machine, not those of the eager run to the bit.
"""

import torch
from torch import nn

from girsanov.errors import GirsanovError


def compile_network(net: nn.Module, device: torch.device) -> None:
    """Compiles the network where it is; the compilation itself happens at its first calls.

    Raises GirsanovError on a device that ``torch.compile`` does not serve.
    """
    if device.type not in ("cpu", "cuda"):
        raise GirsanovError(f"compile=true works on cpu and cuda, not on {device.type}: leave it out")
    inner = getattr(net, "network", net)
    inner.compile()
