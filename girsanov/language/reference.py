"""Log-probs of the reference on disk: computed once a row, read ever after.

One number an item in a file of ``N K`` float64, NaN where it is not known yet; numbers are written as they come, so a
run that is killed goes on with those it has. The file's name holds a digest of the reference's weights and of the rows:
another model, tokenizer or data set has another file, and a changed one is never mistaken for it.
"""

import hashlib
import os
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from girsanov.disk import full_disk
from girsanov.distributed import whole
from girsanov.errors import GirsanovError
from girsanov.language.base import view
from girsanov.policy import Policy
from girsanov.store import fingerprint


def digest_of(policy: Policy) -> str:
    """A digest of the reference's weights."""
    other = policy.model.reference
    net = view(policy, "reference").net if other is None else other.net
    named = dict((net if isinstance(net, nn.Module) else policy.net).named_parameters())
    named |= getattr(net, "weights", {})  # a view's tensors in the place of the parameters
    sums = [f"{name} {fingerprint(cast(Tensor, whole(p.detach())))}" for name, p in sorted(named.items())]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()[:24]


class ReferenceCache:
    """The file of a reference and a data set.

    Args:
        folder: where files are kept.
        digest: of reference and data.
        shape: N, K.
    """

    def __init__(self, folder: str | Path, digest: str, shape: tuple[int, int]) -> None:
        self.path, self.shape = Path(folder) / f"reference-{digest}.f64", shape
        size = 8 * shape[0] * shape[1]
        if not self.path.exists():
            with full_disk(self.path.name):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                draft = self.path.with_suffix(f".{os.getpid()}.tmp")  # other processes make theirs
                np.full(shape, np.nan).tofile(draft)
                draft.replace(self.path)
        if self.path.stat().st_size != size:
            raise GirsanovError(f"{self.path} is damaged (its size is not {size}): delete it, it is made again")
        self.table = np.memmap(self.path, dtype=np.float64, mode="r+", shape=shape)

    def get(self, rows: Tensor) -> Tensor | None:
        """Log-probs [B, K] of rows [B], or None if one of them is not known."""
        found = np.array(self.table[rows.cpu().numpy()])
        return None if np.isnan(found).any() else torch.from_numpy(found)

    def put(self, rows: Tensor, values: Tensor) -> None:
        """Keeps log-probs [B, K]."""
        self.table[rows.cpu().numpy()] = values.detach().double().cpu().numpy()
        self.table.flush()

    @property
    def known(self) -> int:
        """How many rows are known."""
        return int((~np.isnan(self.table)).all(1).sum())
