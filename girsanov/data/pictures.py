"""Pictures of a data set: a folder beside the rows, one file a picture, named by what is in it.

Data sets hold pictures as bytes in a table, as ``{"bytes": ..., "path": ...}``, or as paths. Bytes go to
``FOLDER/ab/abcdef....jpg``: the same picture is stored once, and writing it again after a kill changes nothing.
"""

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from girsanov.disk import full_disk
from girsanov.errors import GirsanovError

KINDS = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp", b"GI": ".gif", b"BM": ".bmp"}


INSIDE = "bytes:"
"""Mark of a picture that stands in the table itself and was not kept."""


class Pictures:
    """Where the pictures of a data set are, and where those that come as bytes go.

    Args:
        found: folder that paths in the rows are relative to.
        kept: folder that bytes are written to; None refuses to keep any.
        home: folder of the file that is written; paths in the new rows are relative to it.
    """

    def __init__(self, found: Path, kept: Path | None = None, home: Path | None = None) -> None:
        self.found, self.kept, self.home = found, kept, home

    def path(self, value: Any, where: str) -> str:
        """The path of a picture as a row should have it. Raises GirsanovError with the place."""
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes | bytearray | memoryview):
            return self._keep(bytes(value), where)
        if not isinstance(value, str) or not value:
            raise GirsanovError(f"{where}: a picture must be bytes or a path, not {type(value).__name__}")
        if self.home is None or Path(value).is_absolute():
            return value
        return os.path.relpath(self.found / value, self.home)

    def _keep(self, data: bytes, where: str) -> str:
        name = hashlib.sha256(data).hexdigest()[:32]
        ending = KINDS.get(data[:2])
        if ending is None:
            raise GirsanovError(f"{where}: {len(data)} bytes that are no JPEG, PNG, WebP, GIF or BMP picture")
        if self.kept is None:  # looked at, not kept: checks and statistics
            if (what := _unreadable(io.BytesIO(data))) is not None:
                raise GirsanovError(f"{where}: {len(data)} bytes that are no readable picture ({what})")
            return f"{INSIDE}{name}{ending}"
        target = self.kept / name[:2] / f"{name}{ending}"
        if not target.exists():
            with full_disk(f"the picture of {where}"):
                target.parent.mkdir(parents=True, exist_ok=True)
                draft = target.with_suffix(".tmp")
                draft.write_bytes(data)
                os.replace(draft, target)
        return os.path.relpath(target, self.home or self.kept)


def unreadable(path: Path) -> str | None:
    """What is wrong with a picture file, or None; the header is read, not the pixels."""
    if not path.is_file():
        return f"there is no picture {path}"
    what = _unreadable(path)
    return None if what is None else f"{path} is no readable picture ({what})"


def _unreadable(file: Path | io.BytesIO) -> str | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            image.verify()
    except UnidentifiedImageError:
        return "of no known format"
    except (OSError, SyntaxError, ValueError) as error:
        return str(error).splitlines()[0]
    return None
