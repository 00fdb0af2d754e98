"""What an iteration measures: means of metrics."""

from collections.abc import Mapping

import torch
from torch import Tensor

from girsanov.distributed import Reduce
from girsanov.methods.base import Chunk
from girsanov.precision import as_wide


class Meter:
    """Weighted means of metrics, kept on the device until the iteration ends."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, float] = {}
        self.losses: set[str] = set()

    def add(self, metrics: Mapping[str, Tensor | float], weight: float) -> None:
        """Adds values to their means."""
        for name, value in metrics.items():
            share = as_wide(torch.as_tensor(value).detach()) * weight
            self.sums[name] = self.sums[name] + share if name in self.sums else share
            self.weights[name] = self.weights.get(name, 0.0) + weight

    def add_loss(self, chunk: Chunk, weight: float) -> None:
        """Adds a chunk to its module's loss, which is a sum over the chunks of an update."""
        name = "loss" if chunk.module == "policy" else f"{chunk.module}_loss"
        self.losses.add(name)
        self.add({name: chunk.loss}, weight)

    def merge(self, other: "Meter") -> None:
        """Adds what another meter has gathered."""
        for name, total in other.sums.items():
            self.sums[name] = self.sums[name] + total if name in self.sums else total
            self.weights[name] = self.weights.get(name, 0.0) + other.weights[name]
        self.losses |= other.losses

    def result(self, reduce: Reduce, updates: int) -> dict[str, float]:
        """The means over chunks (losses: over updates) and over processes, as numbers."""
        names = sorted(self.sums)
        if not names:
            return {}
        counts = [float(updates) if n in self.losses else self.weights[n] for n in names]
        values = torch.stack([self.sums[n].cpu() / c for n, c in zip(names, counts, strict=True)])
        return dict(zip(names, reduce.mean_host(values).tolist(), strict=True))
