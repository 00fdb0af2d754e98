"""The widest floats of a device: what sums over samples, times and weights are held in.

float64, but for a Mac's GPU ("mps"), which has none at all: there it is float32. States and networks have dtypes of
their own (``Policy.dtype``, ``types.wide``), and host tensors stay float64 everywhere.
"""

import torch
from torch import Tensor


def widest(device: torch.device | str) -> torch.dtype:
    """float64, or float32 on a device that has nothing wider."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def as_wide(x: Tensor) -> Tensor:
    """The tensor in the widest floats of its device."""
    return x.to(widest(x.device))


def onto(x: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device; float64 becomes what is widest there, other dtypes stay."""
    return x.to(device, widest(device) if x.dtype == torch.float64 else x.dtype)
