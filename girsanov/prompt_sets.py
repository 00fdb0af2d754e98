"""Prompts from a file or a data set, with what else is known of each: it reaches the reward as the sample's metadata.

======================  =================================================================================
``.txt``                one prompt a line
``.jsonl``, ``.json``   one object a line, or a list of objects
``.csv``, ``.tsv``      a header and rows
``.parquet``            a table (pip install 'girsanov[data]')
anything else           what ``datasets.load_dataset`` takes: a folder, or a name on the hub (same extra)
======================  =================================================================================
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from girsanov.data.readers import READERS, rows
from girsanov.errors import GirsanovError

COLUMNS = ("prompt", "text", "caption")
"""Where the prompt is looked for when no column is named."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts and what else is known of each.

    Attributes:
        texts: N prompts.
        metadata: N mappings, the other columns.
    """

    texts: tuple[str, ...]
    metadata: tuple[Mapping[str, Any], ...]

    def __len__(self) -> int:
        return len(self.texts)

    def column(self, name: str) -> list[Any]:
        """The values of a column. Raises GirsanovError where it is missing."""
        if any(name not in entry for entry in self.metadata):
            raise GirsanovError(f"the prompts have no column {name!r}: {told(self.metadata[0])}")
        return [entry[name] for entry in self.metadata]


def read_prompts(source: str, column: str | None = None, split: str = "train", limit: int | None = None) -> PromptSet:
    """The prompts of a file, or of a data set.

    Args:
        source: path or name.
        column: of the prompt; "prompt", "text" or "caption" by default.
        split: of a data set.
        limit: the first so many alone.

    Raises:
        GirsanovError: no such file or data set, one that cannot be read, no such column, no prompts, a missing extra.
    """
    path = Path(source).expanduser()
    if path.suffix.lower() == ".txt":
        found = read_text(path)
    elif path.is_file() or (path.suffix.lower() in READERS and not path.is_dir()):
        found = [row for _, row in rows(path)]
    else:
        found = from_datasets(source, split)
    return prompt_set(found[:limit], source, column)


def prompt_set(found: Sequence[Mapping[str, Any]], source: str, column: str | None) -> PromptSet:
    """Rows as prompts; empty ones are left out."""
    if not found:
        raise GirsanovError(f"{source} holds no prompts: give at least one")
    names = [column] if column else [c for c in COLUMNS if c in found[0]]
    if not names or any(names[0] not in row for row in found):
        wanted = repr(column) if column else " or ".join(map(repr, COLUMNS))
        raise GirsanovError(f"{source} has no column {wanted}: {told(found[0])}, name one with prompts_column=...")
    kept = [row for row in found if str(row[names[0]] or "").strip()]
    if not kept:
        raise GirsanovError(f"all prompts of {source} are empty: give at least one")
    metadata = tuple({k: v for k, v in row.items() if k != names[0]} for row in kept)
    return PromptSet(tuple(str(row[names[0]]).strip() for row in kept), metadata)


def told(row: Mapping[str, Any]) -> str:
    """The columns of a row, as the end of a sentence."""
    return f"it has {', '.join(map(str, row)) or 'none'}"


# ---- readers


def read_text(path: Path) -> list[dict[str, Any]]:
    """One prompt a line."""
    if not path.is_file():
        raise GirsanovError(f"there is no file {path}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise GirsanovError(f"{path} is no text in UTF-8: is it what its ending says?") from None
    return [{"prompt": line.strip()} for line in lines if line.strip()]


def from_datasets(name: str, split: str) -> list[dict[str, Any]]:
    """Rows of a data set: a folder of files, one written by ``save_to_disk``, or a name on the hub."""
    try:
        import datasets
    except ImportError:
        raise GirsanovError(
            f"there is no file {name}, and data sets need the package datasets: pip install 'girsanov[data]'"
        ) from None
    saved = Path(name).expanduser()
    try:
        if (saved / "dataset_info.json").is_file() or (saved / "dataset_dict.json").is_file():
            data = datasets.load_from_disk(str(saved))
            data = data[split] if isinstance(data, datasets.DatasetDict) else data
        else:
            data = datasets.load_dataset(name, split=split)
        return [dict(row) for row in data]
    except Exception as error:
        what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise GirsanovError(
            f"there is no file {name}, and no data set of that name with a split {split!r} ({what}): give a file, a "
            "folder, or OWNER/NAME on the hub"
        ) from None
