"""Which checkpoint a run goes on from: the newest that is whole, and the same one on every process."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from girsanov.checkpoint import checkpoints, put, verify
from girsanov.errors import GirsanovError
from girsanov.train import Run


def restore(run: Run, folder: Path, say: Callable[[str], None] = print) -> Path | None:
    """Loads the newest whole checkpoint, skipping damaged ones with a word about each; None if there is none.

    Raises GirsanovError if the processes of a run do not see the same one: their folder lies on disks of their own.
    """
    found = newest_whole(folder, say)
    number = torch.tensor([-1 if found is None else int(found[0].name)])
    if len(numbers := sorted(set(run.reduce.gather(number).tolist()))) > 1:
        seen = " and ".join("none" if n < 0 else f"number {n}" for n in numbers)
        raise GirsanovError(
            f"the processes see different checkpoints in {folder} ({seen}): put the run's folder on a disk that all "
            "machines share"
        )
    if found is None:
        return None
    put(run, *found)
    return found[0]


def newest_whole(folder: Path, say: Callable[[str], None] = print) -> tuple[Path, Mapping[str, Any]] | None:
    """The newest checkpoint that is not damaged, with its manifest."""
    for path in reversed(checkpoints(folder)):
        try:
            return path, verify(path)
        except GirsanovError as error:
            say(f"skipped: {error}")
    return None
