"""Writing to disk so that a kill or a full disk leaves the old or the new, never a half."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from girsanov.errors import GirsanovError


@contextmanager
def full_disk(what: str) -> Iterator[None]:
    """Turns "no space left" (and a quota that is used up) into a sentence.

    Args:
        what: the thing being written, "the checkpoint of iteration 10".
    """
    try:
        yield
    except Exception as error:
        if not out_of_space(error):
            raise
        raise GirsanovError(
            f"the disk is full: {what} was not written, what was saved before is intact; free some space and go on "
            "with --resume"
        ) from error


def out_of_space(error: BaseException) -> bool:
    """Whether an exception means that the disk (or the quota) is full, also as libraries wrap it."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError) and error.errno in numbers:
        return True
    text = str(error)
    return any(os.strerror(n) in text for n in numbers) or "unexpected pos" in text  # torch.save of a file cut short


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Writes a file at once: readers see the old text or the new. Raises GirsanovError on a full disk."""
    draft = path.with_name(f".{path.name}.tmp")
    with full_disk(path.name):
        try:
            draft.write_text(text, encoding="utf-8")
            sync(draft)
            os.replace(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
