"""Layouts of public data sets, each a function from its rows to the one schema; recognised by their columns.

=====================  =========================================================================================
layout                 rows
=====================  =========================================================================================
girsanov, -table       the schema itself (``records.py``), and as a table (``convert.py``)
pick-a-pic             ``caption, jpg_0, jpg_1, label_0, label_1, ...``; a label of .5 is a tie
hpd                    ``prompt, image_path, human_preference`` (1 is preferred) or ``rank`` (1 is best)
image-reward           one picture a row: ``prompt_id, prompt, rank, *_rating``; a prompt's rows stand together
richhf                 one picture a row, with ``artifact_score``, ``misalignment_score``, ...; no comparison
ultrafeedback          ``instruction, completions`` with scores and ratings
ultrafeedback-binary   ``prompt, chosen, rejected`` as conversations, ``score_chosen, score_rejected``
hh-rlhf                ``chosen, rejected``: two transcripts that share their beginning
helpsteer              ``prompt, response`` and ratings; the answers to a prompt stand together
helpsteer-preference   ``prompt, response_1, response_2, preference_strength`` (negative: the first is better)
helpsteer3             ``context, response1, response2, overall_preference``, of the same sign
pairs                  ``prompt, chosen, rejected`` as texts
labels                 ``prompt, completion, label``: single answers, each called good or bad
=====================  =========================================================================================

Two kinds need several rows for one preference: a layout is a generator over rows, so that a group is held at a time.

References: Kirstain et al. 2023, arXiv:2305.01569; Wu et al. 2023, arXiv:2306.09341; Xu et al. 2023, arXiv:2304.05977;
Liang et al. 2023, arXiv:2312.10240; Cui et al. 2023, arXiv:2310.01377; Bai et al. 2022, arXiv:2204.05862; Wang et al.
2023, arXiv:2311.09528.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from girsanov.data.pictures import Pictures
from girsanov.data.readers import Row
from girsanov.data.records import ROW_KEYS, Item, Preference, from_row, number, ordered, preference, with_rank
from girsanov.errors import GirsanovError

Parsed = Iterator[tuple[str, Preference | GirsanovError]]
"""(place, row of the schema, or what is wrong with it): one bad row does not end the file."""
Parser = Callable[[dict[str, Any], str, Pictures], Preference]


@dataclass(frozen=True)
class Layout:
    """How rows are read.

    Attributes:
        needs: columns that every row has.
        parse: a row, or the rows of a group as ``{"rows": [...]}``, to the schema.
        lacks: columns that tell it from others by being absent.
        only: the columns there may be; None is any.
        group: the column whose equal values in a run of rows make one preference.
    """

    needs: tuple[str, ...]
    parse: Parser
    lacks: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None
    group: str | None = None

    def matches(self, row: dict[str, Any]) -> bool:
        """Whether the columns are those of this layout."""
        if self.only is not None and not set(row) <= set(self.only):
            return False
        return all(k in row for k in self.needs) and not any(k in row for k in self.lacks)

    def read(self, rows: Iterable[Row], pictures: Pictures) -> Parsed:
        """Rows of the schema with their places."""
        for place, row in self._units(rows):
            try:
                first = row if self.group is None else row["rows"][0]
                missing = [k for k in self.needs if k not in first]
                if missing:
                    raise GirsanovError(f"{place} has no {missing[0]!r}, which this layout needs")
                yield place, self.parse(row, place, pictures)
            except GirsanovError as error:
                yield place, error
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                yield place, GirsanovError(f"{place} has not the form of its layout ({type(error).__name__}: {error})")

    def _units(self, rows: Iterable[Row]) -> Iterator[Row]:
        group = self.group
        if group is None:
            yield from rows
            return
        for _, found in groupby(rows, key=lambda pair: pair[1].get(group)):
            some = list(found)
            yield some[0][0], {"rows": [row for _, row in some]}


# ---- images


def _own(row: dict[str, Any], where: str, pictures: Pictures) -> Preference:
    row = {k: v for k, v in row.items() if v is not None}

    def item(value: Any, place: str) -> Any:
        if isinstance(value, dict):
            value = {k: v for k, v in value.items() if v is not None}
            if "scores" in value and isinstance(value["scores"], list):  # a table's map
                value["scores"] = dict(value["scores"])
            if "image" in value:
                value["image"] = pictures.path(value["image"], place)
        return value

    for key in ("chosen", "rejected"):
        if isinstance(row.get(key), list):
            row[key] = [item(v, f"{where}, {key} {k}") for k, v in enumerate(row[key], 1)]
        elif key in row:
            row[key] = item(row[key], f"{where}, {key}")
    if isinstance(row.get("items"), list):
        row["items"] = [item(v, f"{where}, item {k}") for k, v in enumerate(row["items"], 1)]
    return from_row(row, where)


def _table(row: dict[str, Any], where: str, pictures: Pictures) -> Preference:
    """The schema as ``convert`` writes it to tables: every column there, what is nested as JSON text."""
    made = {k: v for k, v in row.items() if k in ("prompt", "split", "source", "id")}
    made["prompt"] = json.loads(row["prompt"]) if row["conversation"] else row["prompt"]
    made["meta"] = json.loads(row["meta"] or "{}")
    made["items"] = [
        dict(item) | {k: json.loads(item.get(k) or empty) for k, empty in (("scores", "{}"), ("segments", "[]"))}
        for item in row["items"]
    ]
    return _own(made, where, pictures)


def _pick_a_pic(row: dict[str, Any], where: str, pictures: Pictures) -> Preference:
    items = []
    for k in (0, 1):
        label = number(row[f"label_{k}"], f"{where}: 'label_{k}'")
        picture = row.get(f"jpg_{k}") or row.get(f"image_{k}_uid")
        path = pictures.path(picture, f"{where}, image {k}")
        items.append((label, Item(image=path, model=row.get(f"model_{k}"))))
    return Preference(
        _text(row, "caption", where),
        _by_value(items),
        row.get("split") or "train",
        "pick-a-pic",
        str(row.get("ranking_id") or ""),
        {"user": str(row["user_id"])} if row.get("user_id") is not None else {},
    )


def _by_value(items: list[tuple[float, Item]]) -> tuple[Item, ...]:
    """Ranks from values, larger is better; equal values share a rank."""
    values = [v for v, _ in items]
    return ordered([with_rank(item, 1 + sum(w > v for w in values)) for v, item in items])


def _hpd(row: dict[str, Any], where: str, pictures: Pictures) -> Preference:
    paths = [pictures.path(p, f"{where}, image {k}") for k, p in enumerate(row["image_path"], 1)]
    places = row.get("human_preference") or row.get("rank")
    if not isinstance(places, list) or len(places) != len(paths):
        raise GirsanovError(
            f"{where} needs 'human_preference' or 'rank' with one entry for each of its {len(paths)} images"
        )
    sign = 1.0 if row.get("human_preference") else -1.0
    values = [sign * number(v, f"{where}, place {k}") for k, v in enumerate(places, 1)]
    items = [(v, Item(image=p)) for v, p in zip(values, paths, strict=True)]
    meta = {"user": str(row["user_hash"])} if row.get("user_hash") else {}
    return Preference(_text(row, "prompt", where), _by_value(items), row.get("split") or "train", "hpd", "", meta)


def _image_reward(row: dict[str, Any], where: str, pictures: Pictures) -> Preference:
    rows, ratings = row["rows"], ("overall_rating", "image_text_alignment_rating", "fidelity_rating")
    items = []
    for k, one in enumerate(rows, 1):
        place = f"{where}, image {k}"
        rank = one.get("rank")
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise GirsanovError(f"{place}: 'rank' must be a whole number from 1, not {rank!r}")
        scores = {
            n.removesuffix("_rating"): number(one[n], f"{place}: {n!r}") for n in ratings if one.get(n) is not None
        }
        path = pictures.path(one.get("image") or one.get("image_path"), place)
        items.append(Item(image=path, rank=rank, scores=scores, score=scores.get("overall")))
    first = rows[0]
    split = first.get("split") or "train"
    return Preference(_text(first, "prompt", where), ordered(items), split, "image-reward", str(first["prompt_id"]))


def _richhf(row: dict[str, Any], where: str, pictures: Pictures) -> Preference:
    names = ("artifact_score", "misalignment_score", "aesthetics_score", "overall_score")
    scores = {n.removesuffix("_score"): number(row[n], f"{where}: {n!r}") for n in names if row.get(n) is not None}
    prompt = row.get("prompt") or row.get("caption")
    if not isinstance(prompt, str):
        raise GirsanovError(f"{where} has no 'prompt': RichHF-18K ships none, join it with Pick-a-Pic on 'filename'")
    path = pictures.path(row.get("image") or row["filename"], where)
    item = Item(image=path, score=scores.get("overall"), scores=scores)
    marks = row.get("prompt_misalignment_label")
    meta = {} if marks is None else {"misaligned_words": marks}
    return Preference(prompt, (item,), row.get("split") or "train", "richhf", str(row["filename"]), meta)


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise GirsanovError(f"{where}: {key!r} must be text, not {value!r}")
    return value


def _pairs(row: dict[str, Any], where: str, pictures: Pictures) -> Preference:
    sides = [Item(text=_text(row, key, where)) for key in ("chosen", "rejected")]
    return preference(
        _text(row, "prompt", where), *sides, split=row.get("split") or "train", id=str(row.get("id") or "")
    )


def _labels(row: dict[str, Any], where: str, pictures: Pictures) -> Preference:
    turns = row["completion"]
    last = turns[-1] if isinstance(turns, list) and len(turns) == 1 else turns
    text = last.get("content") if isinstance(last, dict) else last
    if not isinstance(text, str):
        raise GirsanovError(f"{where}: 'completion' must be text, or a conversation of one turn, not {turns!r}")
    if row["label"] not in (True, False):
        raise GirsanovError(f"{where}: 'label' must be true or false, not {row['label']!r}")
    made = {"prompt": row["prompt"], "items": [{"text": text, "label": bool(row["label"])}]}
    return from_row(made | {k: str(row[k]) for k in ("split", "id") if row.get(k)}, where)


IMAGES: dict[str, Layout] = {
    "pick-a-pic": Layout(("caption", "label_0", "label_1"), _pick_a_pic),
    "hpd": Layout(("prompt", "image_path"), _hpd, lacks=("prompt_id",)),
    "image-reward": Layout(("prompt_id", "prompt", "rank"), _image_reward, group="prompt_id"),
    "richhf": Layout(("filename", "artifact_score", "misalignment_score"), _richhf),
}
"""Layouts of image preferences."""

GENERAL: dict[str, Layout] = {
    "girsanov": Layout(("prompt",), _own, only=ROW_KEYS),
    "girsanov-table": Layout(("prompt", "conversation", "items", "meta"), _table),
    "pairs": Layout(("prompt", "chosen", "rejected"), _pairs),
    "labels": Layout(("prompt", "completion", "label"), _labels),
}
"""The schema, and plain pairs of texts."""
