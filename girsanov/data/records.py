"""One schema for preferences, of texts and of images.

A row of a JSONL file, and of a table, is an object with

    prompt    text, or a conversation: [{"role": "user", "content": "..."}, ...]
    chosen    an item, and
    rejected  an item, or a list of them that all lost to the chosen one; or
    items     a list of items with "rank" (1 is best, ties allowed), "label" (true is good) or "score"
    split     "train" by default
    source    where the row is from (provenance)
    id        a name of the row
    meta      anything else

and an item is a text, or an object with "text" or "image" (a path, relative to the file's folder), and "score",
"scores" (several by name), "rank", "label", "model" (what made it), "segments" (of a text: [[start, end, weight], ...]
in characters, the end not included, the weight optional: what people corrected). Nothing else is allowed: a misspelt
key is an error with the row's number, not a silent loss.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from girsanov.errors import GirsanovError
from girsanov.settings import unknown

ROW_KEYS = ("prompt", "chosen", "rejected", "items", "split", "source", "id", "meta")
ITEM_KEYS = ("text", "image", "score", "scores", "rank", "label", "model", "segments")
Prompt = str | tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class Segment:
    """Characters ``start`` to ``end`` (not included) of a text, and their weight; None leaves it to the method."""

    start: int
    end: int
    weight: float | None = None


@dataclass(frozen=True)
class Item:
    """One thing that was compared.

    Attributes:
        text: an answer.
        image: path of a picture, relative to the file that holds the row.
        score: overall score, larger is better.
        scores: further scores by name.
        rank: place in its row, 1 is best; ties share a place.
        label: whether it was called good.
        model: what made it.
        segments: parts of the text that weigh more or less than the rest.
    """

    text: str | None = None
    image: str | None = None
    score: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    rank: int | None = None
    label: bool | None = None
    model: str | None = None
    segments: tuple[Segment, ...] = ()

    @property
    def content(self) -> str:
        """The text, or the path of the image."""
        return (self.text if self.image is None else self.image) or ""


@dataclass(frozen=True)
class Preference:
    """A row: a prompt and what was said of its items.

    Attributes:
        prompt: text or conversation.
        items: best first if they are ranked, else as they stand.
        split, source, id: which part of the data, from where, under which name.
        meta: anything else.
    """

    prompt: Prompt
    items: tuple[Item, ...]
    split: str = "train"
    source: str = ""
    id: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ranked(self) -> bool:
        """Whether every item has a rank."""
        return all(item.rank is not None for item in self.items)

    @property
    def pair(self) -> tuple[Item, Item] | None:
        """Chosen and rejected, if these are two items of different rank."""
        if len(self.items) != 2 or not self.ranked or self.items[0].rank == self.items[1].rank:
            return None
        return self.items[0], self.items[1]

    def pairs(self) -> list[tuple[Item, Item]]:
        """Every better item with every worse one: by rank, else by score; items without either are left out."""
        key = [(-i.rank if i.rank is not None else i.score) for i in self.items] if self._comparable else []
        found = [(a, b) for a, ka in zip(self.items, key, strict=False) for b, kb in zip(self.items, key, strict=False)
                 if ka is not None and kb is not None and ka > kb]  # fmt: skip
        return found

    @property
    def _comparable(self) -> bool:
        return self.ranked or all(item.score is not None for item in self.items)

    @property
    def text(self) -> str:
        """The prompt as one text."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in self.prompt)


def preference(
    prompt: Prompt, chosen: Item, rejected: Item, *, split: str = "train", source: str = "", id: str = "", **meta: Any
) -> Preference:
    """A pair."""
    first, second = (with_rank(item, k) for k, item in enumerate((chosen, rejected), 1))
    return Preference(prompt, (first, second), split, source, id, meta)


def with_rank(item: Item, rank: int) -> Item:
    """The item at another place."""
    return dataclasses.replace(item, rank=rank)


def ordered(items: Sequence[Item]) -> tuple[Item, ...]:
    """Ranked items best first (ties stay in order); others as they are."""
    if any(item.rank is None for item in items):
        return tuple(items)
    return tuple(sorted(items, key=lambda item: item.rank or 0))


# ---- plain data


def to_row(p: Preference) -> dict[str, Any]:
    """The object of a row: "chosen" and "rejected" for a pair, "items" otherwise; empty fields are left out."""
    prompt = p.prompt if isinstance(p.prompt, str) else [dict(turn) for turn in p.prompt]
    row: dict[str, Any] = {"prompt": prompt}
    if p.pair is not None:
        row |= {"chosen": _item_row(p.items[0], rank=False), "rejected": _item_row(p.items[1], rank=False)}
    else:
        row["items"] = [_item_row(item) for item in p.items]
    for key in ("split", "source", "id"):
        if getattr(p, key):
            row[key] = getattr(p, key)
    return row | ({"meta": dict(p.meta)} if p.meta else {})


def _item_row(item: Item, rank: bool = True) -> dict[str, Any]:
    keys = [k for k in ITEM_KEYS if rank or k != "rank"]
    found = {k: getattr(item, k) for k in keys}
    marks = [[s.start, s.end, *([] if s.weight is None else [s.weight])] for s in item.segments]
    plain = found | {"scores": dict(item.scores), "segments": marks}
    return {k: v for k, v in plain.items() if k in keys and v is not None and v != {} and v != []}


def from_row(row: Mapping[str, Any], where: str) -> Preference:
    """A row of the schema. Raises GirsanovError that starts with the place (``file, row 7``)."""
    _known(row, ROW_KEYS, where, "key of a row")
    if "prompt" not in row:
        raise GirsanovError(f"{where} has no 'prompt'")
    sides = [k for k in ("chosen", "rejected") if k in row]
    if "items" in row and sides or "items" not in row and len(sides) != 2:
        raise GirsanovError(f"{where} must have either 'chosen' and 'rejected', or 'items'")
    if sides:
        several = isinstance(row["rejected"], list | tuple)
        if several and not row["rejected"]:
            raise GirsanovError(f"{where}: 'rejected' must be an item, or a list of at least one")
        lost = enumerate(row["rejected"] if several else [row["rejected"]], 1)
        found = [_item(v, f"{where}, rejected {k}" if several else f"{where}, rejected") for k, v in lost]
        best = with_rank(_item(row["chosen"], f"{where}, chosen"), 1)
        items = (best, *(with_rank(item, 2) for item in found))
    else:
        if not isinstance(row["items"], list | tuple) or not row["items"]:
            raise GirsanovError(f"{where}: 'items' must be a list of at least one item")
        items = ordered([_item(v, f"{where}, item {k}") for k, v in enumerate(row["items"], 1)])
    texts = {k: row.get(k, "train" if k == "split" else "") for k in ("split", "source", "id")}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise GirsanovError(f"{where}: {key!r} must be text, not {value!r}")
    meta = row.get("meta") or {}
    if not isinstance(meta, Mapping):
        raise GirsanovError(f"{where}: 'meta' must be an object, not {meta!r}")
    return Preference(_prompt(row["prompt"], where), items, texts["split"], texts["source"], texts["id"], meta)


def _prompt(value: Any, where: str) -> Prompt:
    if isinstance(value, str):
        return value
    turns = list(value) if isinstance(value, list | tuple) else []
    if not turns or not all(isinstance(t, Mapping) and isinstance(t.get("content"), str) for t in turns):
        raise GirsanovError(
            f"{where}: the prompt must be text, or a conversation [{{'role': ..., 'content': ...}}, ...]"
        )
    return tuple({"role": str(t.get("role", "user")), "content": t["content"]} for t in turns)


def _item(value: Any, where: str) -> Item:
    if isinstance(value, str):
        return Item(text=value)
    if not isinstance(value, Mapping):
        raise GirsanovError(f"{where} must be text or an object, not {value!r}")
    _known(value, ITEM_KEYS, where, "key of an item")
    if (value.get("text") is None) == (value.get("image") is None):
        raise GirsanovError(f"{where} must have 'text' or 'image', one of them")
    content = value.get("text") if value.get("image") is None else value.get("image")
    if not isinstance(content, str):
        raise GirsanovError(f"{where}: its {'text' if value.get('image') is None else 'image'} must be text")
    scores = value.get("scores") or {}
    if not isinstance(scores, Mapping):
        raise GirsanovError(f"{where}: 'scores' must be an object of numbers")
    rank, label, model = (value.get(k) for k in ("rank", "label", "model"))
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise GirsanovError(f"{where}: 'rank' must be a whole number from 1 (the best), not {rank!r}")
    if label is not None and not isinstance(label, bool):
        raise GirsanovError(f"{where}: 'label' must be true or false, not {label!r}")
    named = {str(k): number(v, f"{where}, score {k!r}") for k, v in scores.items() if v is not None}
    score = None if value.get("score") is None else number(value["score"], f"{where}: 'score'")
    marks = _segments(value, where)
    made = None if model is None else str(model)
    return Item(value.get("text"), value.get("image"), score, named, rank, label, made, marks)


def _segments(value: Mapping[str, Any], where: str) -> tuple[Segment, ...]:
    rows, text = value.get("segments") or (), value.get("text")
    if rows and text is None:
        raise GirsanovError(f"{where}: only a text has 'segments'")
    found = []
    for k, row in enumerate(rows if isinstance(rows, list | tuple) else [rows], 1):
        numbers = list(row) if isinstance(row, list | tuple) else []
        whole = [isinstance(v, int) and not isinstance(v, bool) for v in numbers[:2]]
        if len(numbers) not in (2, 3) or not all(whole) or not 0 <= numbers[0] < numbers[1] <= len(text or ""):
            raise GirsanovError(
                f"{where}: segment {k} must be [start, end] or [start, end, weight] with 0 <= start < end <= "
                f"{len(text or '')} characters, not {row!r}"
            )
        weight = (
            None if len(numbers) == 2 or numbers[2] is None else number(numbers[2], f"{where}, segment {k}: weight")
        )
        if weight is not None and weight <= 0:
            raise GirsanovError(f"{where}, segment {k}: its weight must be positive, not {weight:g}")
        found.append(Segment(numbers[0], numbers[1], weight))
    return tuple(found)


def number(value: Any, where: str) -> float:
    """A finite number. Raises GirsanovError with the place."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise GirsanovError(f"{where} must be a finite number, not {value!r}")
    return float(value)


def _known(row: Mapping[str, Any], keys: Sequence[str], where: str, what: str) -> None:
    for key in row:
        if key not in keys:
            raise GirsanovError(f"{where}: {key!r} {unknown(str(key), keys, what)}")
