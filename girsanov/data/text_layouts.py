"""Layouts of text preferences, and the dict of all layouts; ``layouts.py`` describes them."""

from collections.abc import Mapping, Sequence
from typing import Any

from girsanov.data.layouts import GENERAL, IMAGES, Layout, _by_value, _text
from girsanov.data.pictures import Pictures
from girsanov.data.records import Item, Preference, Prompt, number, preference
from girsanov.errors import GirsanovError

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
RATINGS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def transcript(text: str, where: str) -> list[dict[str, str]]:
    """A transcript of "\\n\\nHuman: ..." and "\\n\\nAssistant: ..." as turns."""
    if not text.startswith((HUMAN, ASSISTANT)):
        raise GirsanovError(f"{where}: a transcript starts with {HUMAN!r} or {ASSISTANT!r}, not {text[:20]!r}")
    turns, rest = list[dict[str, str]](), text
    while rest:
        tag, role = (HUMAN, "user") if rest.startswith(HUMAN) else (ASSISTANT, "assistant")
        rest = rest[len(tag) :]
        ends = [k for k in (rest.find(HUMAN), rest.find(ASSISTANT)) if k >= 0]
        turn, rest = (rest[: min(ends)], rest[min(ends) :]) if ends else (rest, "")
        turns.append({"role": role, "content": turn.strip()})
    return turns


def _hh_rlhf(row: dict[str, Any], where: str, pictures: Pictures) -> Preference:
    sides = [transcript(_text(row, key, where), f"{where}, {key}") for key in ("chosen", "rejected")]
    return _conversations(sides, where, [None, None], "hh-rlhf", row)


def _conversations(
    sides: Sequence[Sequence[Mapping[str, str]]],
    where: str,
    scores: Sequence[float | None],
    source: str,
    row: Mapping[str, Any],
) -> Preference:
    """Two conversations that are the same up to their last turn."""
    first, second = (list(map(dict, side)) for side in sides)
    if not first or not second or first[:-1] != second[:-1] or len(first) < 2:
        raise GirsanovError(f"{where}: chosen and rejected must be the same conversation up to the last turn")
    for key, side in (("chosen", first), ("rejected", second)):
        if side[-1].get("role") != "assistant":
            raise GirsanovError(f"{where}, {key}: the last turn must be the assistant's, not {side[-1].get('role')!r}")
    before = first[:-1]
    alone = len(before) == 1 and before[0]["role"] == "user"
    prompt: Prompt = before[0]["content"] if alone else tuple(before)
    items = [Item(text=side[-1]["content"], score=score) for side, score in zip((first, second), scores, strict=True)]
    name = str(row.get("prompt_id") or "")
    return preference(prompt, *items, split=row.get("split") or "train", source=source, id=name)


def _ultrafeedback(row: dict[str, Any], where: str, pictures: Pictures) -> Preference:
    items = []
    for k, one in enumerate(row["completions"], 1):
        place, scores = f"{where}, completion {k}", dict[str, float]()
        for name, note in (one.get("annotations") or {}).items():
            rating = note.get("Rating") if isinstance(note, Mapping) else None
            if rating not in (None, "N/A"):
                scores[name] = number(float(rating), f"{place}, {name}")
        score = None if one.get("overall_score") is None else number(one["overall_score"], f"{place}: 'overall_score'")
        items.append(
            (score, Item(text=_text(one, "response", place), score=score, scores=scores, model=one.get("model")))
        )
    prompt, split = _text(row, "instruction", where), row.get("split") or "train"
    if any(score is None for score, _ in items):
        return Preference(prompt, tuple(item for _, item in items), split, "ultrafeedback")
    return Preference(prompt, _by_value(items), split, "ultrafeedback")  # type: ignore[arg-type]


def _binary(row: dict[str, Any], where: str, pictures: Pictures) -> Preference:
    scores = [number(row[k], f"{where}: {k!r}") for k in ("score_chosen", "score_rejected")]
    for key in ("chosen", "rejected"):
        if not isinstance(row[key], list) or not all(isinstance(t, Mapping) and "content" in t for t in row[key]):
            raise GirsanovError(f"{where}: {key!r} must be a conversation")
    return _conversations([row["chosen"], row["rejected"]], where, scores, "ultrafeedback", row)


def _helpsteer(row: dict[str, Any], where: str, pictures: Pictures) -> Preference:
    items = []
    for k, one in enumerate(row["rows"], 1):
        place = f"{where}, answer {k}"
        scores = {n: number(one[n], f"{place}: {n!r}") for n in RATINGS if one.get(n) is not None}
        score = scores.get("helpfulness", 0.0)
        items.append((score, Item(text=_text(one, "response", place), score=score, scores=scores)))
    split = row["rows"][0].get("split") or "train"
    return Preference(_text(row["rows"][0], "prompt", where), _by_value(items), split, "helpsteer")


def _helpsteer_pair(row: dict[str, Any], where: str, pictures: Pictures) -> Preference:
    strength = number(row["preference_strength"], f"{where}: 'preference_strength'")
    items = [(-strength if k == 1 else strength, Item(text=_text(row, f"response_{k}", where))) for k in (1, 2)]
    split, meta = row.get("split") or "train", {"strength": abs(strength)}
    return Preference(_text(row, "prompt", where), _by_value(items), split, "helpsteer", "", meta)


def _helpsteer3(row: dict[str, Any], where: str, pictures: Pictures) -> Preference:
    strength = number(row["overall_preference"], f"{where}: 'overall_preference'")
    context = row["context"]
    if not isinstance(context, list) or not all(isinstance(t, Mapping) and "content" in t for t in context):
        raise GirsanovError(f"{where}: 'context' must be a conversation")
    turns = tuple({"role": str(t.get("role", "user")), "content": str(t["content"])} for t in context)
    prompt: Prompt = turns[0]["content"] if len(turns) == 1 else turns
    items = [(-strength if k == 1 else strength, Item(text=_text(row, f"response{k}", where))) for k in (1, 2)]
    meta = {"strength": abs(strength)} | {k: row[k] for k in ("domain", "language") if row.get(k)}
    return Preference(prompt, _by_value(items), row.get("split") or "train", "helpsteer3", "", meta)


TEXTS: dict[str, Layout] = {
    "ultrafeedback": Layout(("instruction", "completions"), _ultrafeedback),
    "ultrafeedback-binary": Layout(("prompt", "chosen", "rejected", "score_chosen", "score_rejected"), _binary),
    "hh-rlhf": Layout(("chosen", "rejected"), _hh_rlhf, lacks=("prompt",)),
    "helpsteer": Layout(("prompt", "response", "helpfulness"), _helpsteer, group="prompt"),
    "helpsteer-preference": Layout(("prompt", "response_1", "response_2", "preference_strength"), _helpsteer_pair),
    "helpsteer3": Layout(("context", "response1", "response2", "overall_preference"), _helpsteer3),
}
"""Layouts of text preferences."""

LAYOUTS: dict[str, Layout] = {**IMAGES, **TEXTS, **GENERAL}
"""Every layout by name, in the order in which they are tried."""


def layout_of(row: Mapping[str, Any], place: str) -> str:
    """The name of the layout whose columns a row has. Raises GirsanovError with the columns if none fits."""
    found = dict(row)
    for name, layout in LAYOUTS.items():
        if layout.matches(found):
            return name
    columns = ", ".join(map(str, row)) or "none"
    raise GirsanovError(
        f"{place} is of no layout known here (its columns: {columns}): name one of {', '.join(LAYOUTS)}"
    )
