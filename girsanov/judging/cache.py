"""Answers of a judge on disk, so that nothing is asked (and paid for) twice.

One file an answer, named by the SHA-256 of the request; written at once, so a kill leaves none or all of it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from girsanov.disk import write_text


class AnswerCache:
    """A folder of answers; None keeps nothing."""

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def _path(self, request: bytes) -> Path | None:
        if self.folder is None:
            return None
        name = hashlib.sha256(request).hexdigest()
        return self.folder / name[:2] / f"{name}.json"

    def get(self, request: bytes) -> Any:
        """What was answered, or None. A damaged file counts as none."""
        path = self._path(request)
        if path is None or not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))["answer"]
        except (ValueError, KeyError, TypeError, OSError):
            return None

    def put(self, request: bytes, answer: Any) -> None:
        """Keeps an answer."""
        path = self._path(request)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps({"answer": answer}, ensure_ascii=False) + "\n")
