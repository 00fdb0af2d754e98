r"""Preference pairs for training from a file of any size: rows are found by their offsets and read when they are
needed.

``RowFile`` keeps 8 bytes a row. ``PairFile`` serves pairs in epochs, as a pure function of the iteration: resuming
needs no position, and two processes share a batch without overlap. How rows become samples and conditions (latents of
pictures, embeddings of prompts) is the caller's ``encode``.
"""

import json
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from girsanov.data.records import Preference, from_row
from girsanov.errors import GirsanovError
from girsanov.pairs import PairPrompts
from girsanov.prompts import Groups
from girsanov.types import Cond

Encode = Callable[[Sequence[Preference]], tuple[Cond, Tensor, Tensor]]
"""Rows to conditions, chosen and rejected samples of model space ([B, *D] each)."""


class RowFile:
    """Random access to a JSONL file of the schema.

    Args:
        path: the file.
        split: only rows of this split.

    Raises:
        GirsanovError: no such file, a row that is no JSON, no rows.
    """

    def __init__(self, path: str | Path, split: str | None = None) -> None:
        self.path, self.offsets, self.numbers = Path(path), array("q"), array("q")
        if not self.path.is_file():
            raise GirsanovError(f"there is no file {path}: girsanov data convert writes one")
        with self.path.open("rb") as file:
            at = 0
            for n, line in enumerate(file, 1):
                if line.strip() and (split is None or self._split(line, n) == split):
                    self.offsets.append(at)
                    self.numbers.append(n)
                at += len(line)
        if not self.offsets:
            raise GirsanovError(f"{path} has no rows{'' if split is None else f' of the split {split!r}'}")

    def _split(self, line: bytes, n: int) -> str:
        try:
            return str(json.loads(line).get("split", "train"))
        except (ValueError, AttributeError):
            raise GirsanovError(f"{self.path.name}, row {n} is no object in JSON: see girsanov data check") from None

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> Preference:
        """The row of an index. Raises GirsanovError with its number if it is bad."""
        with self.path.open("rb") as file:
            file.seek(self.offsets[index])
            line = file.readline()
        place = f"{self.path.name}, row {self.numbers[index]}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise GirsanovError(f"{place} is no JSON: {error}") from None
        return from_row(row, place)


@dataclass(frozen=True)
class PairFile:
    """Pairs of a file, served in epochs.

    Attributes:
        rows: the file; each row must be a pair.
        encode: rows to conditions and samples.
        batch_size: pairs of an iteration, over all processes.
        seed: key of the order.
    """

    rows: RowFile
    encode: Encode
    batch_size: int = 64
    seed: int = 0
    _order: Groups = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_order", Groups(len(self.rows), self.batch_size, 1, self.seed))

    def batch(self, iteration: int, rank: int = 0, world_size: int = 1) -> PairPrompts:
        """This process's pairs of an iteration. Raises GirsanovError at a row that is no pair."""
        index, ids, _ = self._order.share(iteration, rank, world_size)
        found = [self.rows[i] for i in index.tolist()]
        for i, row in zip(index.tolist(), found, strict=True):
            if row.pair is None:
                place = f"{self.rows.path.name}, row {self.rows.numbers[i]}"
                raise GirsanovError(f"{place} is no pair of a better and a worse item: leave ties and lists out")
        cond, chosen, rejected = self.encode(found)
        return PairPrompts(cond, ids, index, tuple(row.text for row in found), chosen=chosen, rejected=rejected)
