"""What devices can do at most: FLOPs a second of dense matrix products, by the name that torch gives the device.

The numbers are those of the vendors' data sheets without sparsity. A device that is not listed, a slice of one (MIG)
and a processor have none: a share of an unknown peak would be a guess.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch

TERA = 1e12
PEAKS: Mapping[str, Mapping[str, float]] = {
    "B200": {"16": 2250, "tf32": 1125, "fp32": 75},
    "H100 PCIe": {"16": 756, "tf32": 378, "fp32": 51},
    "H100 NVL": {"16": 835, "tf32": 417, "fp32": 60},
    "H100": {"16": 989, "tf32": 494, "fp32": 67},
    "H200": {"16": 989, "tf32": 494, "fp32": 67},
    "GH200": {"16": 989, "tf32": 494, "fp32": 67},
    "A100": {"16": 312, "tf32": 156, "fp32": 19.5},
    "A10": {"16": 125, "tf32": 62.5, "fp32": 31.2},
    "L40S": {"16": 362, "tf32": 183, "fp32": 91.6},
    "L4": {"16": 121, "tf32": 60, "fp32": 30.3},
    "V100-SXM2": {"fp16": 125, "fp32": 15.7},
    "T4": {"fp16": 65, "fp32": 8.1},
    "RTX 4090": {"16": 165, "tf32": 82.6, "fp32": 82.6},
    "RTX 3090": {"16": 71, "tf32": 35.6, "fp32": 35.6},
    "RTX A6000": {"16": 155, "tf32": 77.4, "fp32": 38.7},
    "MI300X": {"16": 1307, "tf32": 654, "fp32": 163},
}
"""TFLOP/s by a part of the name, the longest that fits; "16" is bf16 and fp16 alike, "fp16" that alone."""


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOPs a second that a device can do in a dtype at most; None if that is not known."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), dtype, torch.backends.cuda.matmul.allow_tf32)


def peak_of(name: str, dtype: torch.dtype, tf32: bool = False) -> float | None:
    """The same for the name of a device; ``tf32`` says whether float32 products may be rounded."""
    words = name.replace("-", " ").split()
    fits = [key for key in PEAKS if all(word in words for word in key.replace("-", " ").split())]
    if not fits or "MIG" in words:
        return None
    row = PEAKS[max(fits, key=len)]
    names = {torch.float16: ("16", "fp16"), torch.bfloat16: ("16",), torch.float32: ("tf32", "fp32")[not tf32 :]}
    found = next((row[key] for key in names.get(dtype, ()) if key in row), None)
    return None if found is None else TERA * found


def peak_memory(device: torch.device) -> int | None:
    """Bytes that were in use at most: allocated on a GPU, resident in this process elsewhere; None if nobody says."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # getrusage would carry the peak of the process that started this one
        status = Path("/proc/self/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
