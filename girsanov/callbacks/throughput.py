r"""How fast a run is: samples a second, MFU, memory, and how much of a reward's work it waits for.

Added to the metrics of every iteration, as measured by process 0:

========================  ==========================================================================
``speed/samples``         samples a second, over all processes and the whole iteration
``speed/mfu``             FLOPs that the network's passes need over what the device could have done
``speed/mfu_loss``        the same for the passes of the loss alone (``time/loss``)
``speed/peak_mb``         most memory in use so far, MiB: allocated on a GPU, resident elsewhere
``speed/reward_work``     seconds that rewards were at work; ``time/reward`` is how long they were waited for
========================  ==========================================================================

The MFU is left out on a device whose peak is not known (``devices.py``), on processors in particular, and that of the
iteration also where a rollout does not go through the network as a whole (the cached passes of a language model).
"""

from collections.abc import Mapping

import torch

from girsanov.devices import peak_flops, peak_memory
from girsanov.passes import Passes
from girsanov.policy import Policy
from girsanov.train import Run

MIB = 2**20


class Throughput:
    """Adds ``speed/...`` to the metrics; comes before the callback that writes them.

    Args:
        peak: FLOPs a second of the device; None looks it up.
    """

    def __init__(self, peak: float | None = None) -> None:
        self.peak = peak
        self.passes: Passes | None = None

    def start(self, run: Run) -> None:
        """Watches the network's passes where their share of a peak can be told."""
        if self.peak is None:
            self.peak = peak_flops(run.policy.device, arithmetic(run.policy))
        if self.peak is not None:
            self.passes = Passes(run.policy.net)

    def iteration(self, run: Run, metrics: dict[str, float]) -> None:
        """Reads the clock's numbers."""
        flops = {name: metrics.pop(name) for name in list(metrics) if name.startswith("flops/")}
        metrics |= speeds(metrics, flops, self.peak)
        memory = peak_memory(run.policy.device)
        if memory is not None:
            metrics["speed/peak_mb"] = memory / MIB

    def end(self, run: Run) -> None:
        """Watches no longer."""
        if self.passes is not None:
            self.passes.close()


def speeds(metrics: Mapping[str, float], flops: Mapping[str, float], peak: float | None) -> dict[str, float]:
    """Samples a second and MFUs from an iteration's ``time/...``, ``samples`` and ``flops/...``."""
    total = sum(value for name, value in metrics.items() if name.startswith("time/"))
    found = {"speed/samples": metrics["samples"] / total} if total else {}
    if peak is None or not flops:
        return found
    if "time/rollout" not in metrics or "flops/rollout" in flops:
        found["speed/mfu"] = sum(flops.values()) / (peak * total)
    if "flops/loss" in flops:
        found["speed/mfu_loss"] = flops["flops/loss"] / (peak * metrics["time/loss"])
    return found


def arithmetic(policy: Policy) -> torch.dtype:
    """The dtype of the network's matrix products."""
    autocast = getattr(policy.model, "autocast", None)
    return next(policy.net.parameters()).dtype if autocast is None else autocast
