"""Preference data: every layout from a small file of its form, conversion that resumes, checks with row numbers."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from girsanov.cli import main
from girsanov.data import LAYOUTS, PairFile, RowFile, convert, find_flips, flips, open_preferences, read_preferences
from girsanov.data.checks import Seen, check_row
from girsanov.data.convert import EVERY
from girsanov.data.records import Item, Preference, Segment, from_row, preference, to_row
from girsanov.data.statistics import Statistics
from girsanov.data.text_layouts import transcript
from girsanov.errors import GirsanovError
from girsanov.types import Cond
from tests.laws.mutation import Mutation, check, mutants

pyarrow = pytest.importorskip("pyarrow")


def picture(shade: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, shade, shade)).save(buffer, kind)
    return buffer.getvalue()


def write(path: Path, rows: list[Any]) -> Path:
    """JSONL, JSON or Parquet by the ending; pictures are bytes in Parquet."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[k % 2], "content": t} for k, t in enumerate(texts)]


JPEG = [picture(k, "JPEG") for k in range(4)]
HH = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: A poem?\n\nAssistant:"
FILES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "pick-a-pic": (
        "pick.parquet",
        [
            {"caption": "a cat", "jpg_0": JPEG[0], "jpg_1": JPEG[1], "label_0": 0.0, "label_1": 1.0,
             "model_0": "sd", "model_1": "xl", "ranking_id": 7, "user_id": 3, "has_label": True},
            {"caption": "a dog", "jpg_0": JPEG[2], "jpg_1": JPEG[3], "label_0": 0.5, "label_1": 0.5,
             "model_0": "sd", "model_1": "sd", "ranking_id": 8, "user_id": 3, "has_label": True},
        ],
    ),
    "hpd": (
        "hpd.json",
        [
            {"prompt": "a cat", "image_path": ["a.png", "b.png"], "human_preference": [0, 1], "user_hash": "x"},
            {"prompt": "a dog", "image_path": ["a.png", "b.png", "c.png"], "rank": [3, 1, 2]},
        ],
    ),
    "image-reward": (
        "reward.jsonl",
        [
            {"image_path": f"{name}.png", "prompt_id": pid, "prompt": f"p{pid}", "rank": rank,
             "overall_rating": 8 - rank, "image_text_alignment_rating": 5, "fidelity_rating": 6}
            for name, pid, rank in (("a", "1", 2), ("b", "1", 1), ("c", "1", 2), ("a", "2", 1), ("b", "2", 2))
        ],
    ),
    "richhf": (
        "rich.jsonl",
        [
            {"filename": "a.png", "prompt": "a cat", "artifact_score": 0.5, "misalignment_score": 0.25,
             "aesthetics_score": 0.75, "overall_score": 0.6, "prompt_misalignment_label": "1 0"},
        ],
    ),
    "ultrafeedback": (
        "ultra.jsonl",
        [
            {"source": "x", "instruction": "Say hi", "models": ["m1", "m2", "m3"], "completions": [
                {"model": "m1", "response": "Hi", "overall_score": 6.0,
                 "annotations": {"helpfulness": {"Rating": "4", "Rationale": "ok"}, "honesty": {"Rating": "N/A"}}},
                {"model": "m2", "response": "Hello there", "overall_score": 8.5, "annotations": {}},
                {"model": "m3", "response": "No", "overall_score": 1.0, "annotations": {}}]},
        ],
    ),
    "ultrafeedback-binary": (
        "binary.parquet",
        [
            {"prompt": "Say hi", "prompt_id": "ab", "chosen": turns("Say hi", "Hello"),
             "rejected": turns("Say hi", "No"), "score_chosen": 8.0, "score_rejected": 3.0},
        ],
    ),
    "hh-rlhf": ("hh.jsonl", [{"chosen": HH + " Roses.", "rejected": HH + " No."}]),
    "helpsteer": (
        "help.jsonl",
        [
            {"prompt": p, "response": r, "helpfulness": h, "correctness": 3, "coherence": 4, "complexity": 1,
             "verbosity": 2}
            for p, r, h in (("Why?", "Because", 1), ("Why?", "It is so", 4), ("How?", "Thus", 2))
        ],
    ),
    "helpsteer-preference": (
        "strength.jsonl",
        [{"prompt": "Why?", "response_1": "Because", "response_2": "It is so", "preference_strength": -2,
          "split": "validation"}],
    ),
    "helpsteer3": (
        "three.jsonl",
        [{"domain": "code", "language": "python", "context": turns("Hi", "Hello", "Sort?"), "response1": "No.",
          "response2": "Use sorted.", "overall_preference": 2, "individual_preference": []},
         {"domain": "general", "language": "english", "context": turns("Why?"), "response1": "So.", "response2": "No.",
          "overall_preference": 0, "individual_preference": []}],
    ),
    "girsanov": (
        "own.jsonl",
        [
            {"prompt": "p", "chosen": {"text": "a", "score": 2.0}, "rejected": "b", "id": "1", "meta": {"k": [1, 2]}},
            {"prompt": turns("x", "y", "z"), "items": [{"text": "b", "rank": 2}, {"text": "a", "rank": 1}],
             "split": "test"},
            {"prompt": "q", "items": [{"image": "a.png", "label": True, "scores": {"style": 0.5}}], "source": "lab"},
            {"prompt": "r", "chosen": {"text": "a cat", "segments": [[2, 5, 3.0], [0, 1]]}, "rejected": ["b", "c"]},
        ],
    ),
    "pairs": ("pairs.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b", "category": "x"}]),
    "labels": (
        "labels.jsonl",
        [
            {"prompt": "p", "completion": "a", "label": True},
            {"prompt": turns("Hi"), "completion": turns("", "Ho")[1:], "label": 0, "split": "test"},
        ],
    ),
}  # fmt: skip


def given(name: str, folder: Path) -> Path:
    for k, letter in enumerate("abc"):
        (folder / f"{letter}.png").write_bytes(picture(10 * k))
    file, rows = FILES[name]
    return write(folder / file, rows)


def contents(p: Preference) -> list[tuple[str, int | None]]:
    return [(item.content, item.rank) for item in p.items]


@pytest.mark.parametrize("name", FILES)
def test_a_layout_is_found_by_its_columns_and_survives_conversion(name: str, tmp_path: Path) -> None:
    """To JSONL and to Parquet, from another folder, and back: the same rows; pictures can be opened where they say."""
    source = given(name, tmp_path)
    assert open_preferences(source).layout == name
    plain = list(read_preferences(source))
    assert plain and all(isinstance(p, Preference) for p in plain)
    for ending in ("jsonl", "parquet"):
        target = tmp_path / "out" / f"new.{ending}"
        outcome = convert(source, target)
        assert (outcome.layout, outcome.written) == (name, len(plain)) and not outcome.left_out
        again = list(read_preferences(target))
        assert [(p.prompt, p.split, p.source, p.id, dict(p.meta)) for p in again] == [
            (p.prompt, p.split, p.source, p.id, dict(p.meta)) for p in plain
        ]
        for old, new in zip(plain, again, strict=True):
            assert [(i.text, i.rank, i.score, dict(i.scores), i.label, i.model, i.segments) for i in new.items] == [
                (i.text, i.rank, i.score, dict(i.scores), i.label, i.model, i.segments) for i in old.items
            ]
            for item in new.items:
                if item.image is not None:
                    assert Image.open(target.parent / item.image).size == (4, 4)
        assert sorted(p.name for p in target.parent.iterdir() if p.name.startswith(".")) == []


def test_every_layout_has_a_file_here() -> None:
    assert set(LAYOUTS) - {"girsanov-table"} == set(FILES)  # the table is what convert writes


def test_what_the_layouts_mean(tmp_path: Path) -> None:
    rows = {name: list(read_preferences(given(name, tmp_path))) for name in FILES}
    pick = rows["pick-a-pic"]
    assert [i.rank for i in pick[0].items] == [1, 2] and pick[0].items[0].model == "xl" and pick[0].pair is not None
    assert [i.rank for i in pick[1].items] == [1, 1] and pick[1].pair is None and pick[1].pairs() == []
    assert contents(rows["hpd"][0]) == [("b.png", 1), ("a.png", 2)]
    assert contents(rows["hpd"][1]) == [("b.png", 1), ("c.png", 2), ("a.png", 3)]
    first, second = rows["image-reward"]
    assert contents(first) == [("b.png", 1), ("a.png", 2), ("c.png", 2)] and len(first.pairs()) == 2
    assert contents(second) == [("a.png", 1), ("b.png", 2)] and second.id == "2"
    assert first.items[0].scores == {"overall": 7.0, "image_text_alignment": 5.0, "fidelity": 6.0}
    assert rows["richhf"][0].items[0].scores["artifact"] == 0.5 and rows["richhf"][0].pairs() == []
    assert [i.model for i in rows["ultrafeedback"][0].items] == ["m2", "m1", "m3"]
    assert rows["ultrafeedback"][0].items[1].scores == {"helpfulness": 4.0}
    assert rows["ultrafeedback-binary"][0].prompt == "Say hi" and rows["ultrafeedback-binary"][0].items[0].score == 8.0
    assert [t["content"] for t in rows["hh-rlhf"][0].prompt] == ["Hi", "Hello.", "A poem?"]
    assert contents(rows["hh-rlhf"][0]) == [("Roses.", 1), ("No.", 2)]
    assert contents(rows["helpsteer"][0]) == [("It is so", 1), ("Because", 2)] and len(rows["helpsteer"][1].items) == 1
    strength = rows["helpsteer-preference"][0]
    assert contents(strength) == [("Because", 1), ("It is so", 2)] and strength.meta == {"strength": 2.0}
    assert strength.split == "validation"
    third, tie = rows["helpsteer3"]
    assert contents(third) == [("Use sorted.", 1), ("No.", 2)] and third.meta["domain"] == "code"
    assert len(third.prompt) == 3 and tie.prompt == "Why?" and tie.pair is None
    assert contents(rows["girsanov"][1]) == [("a", 1), ("b", 2)] and rows["girsanov"][2].items[0].label is True
    several = rows["girsanov"][3]
    assert contents(several) == [("a cat", 1), ("b", 2), ("c", 2)] and len(several.pairs()) == 2
    assert several.items[0].segments == (Segment(2, 5, 3.0), Segment(0, 1))
    good, bad = rows["labels"]
    assert [(i.text, i.label) for i in (*good.items, *bad.items)] == [("a", True), ("Ho", False)]
    assert bad.split == "test" and bad.prompt[0]["content"] == "Hi" and good.pairs() == []
    assert [r["role"] for r in transcript(HH + " x", "here")] == ["user", "assistant"] * 2


def test_a_saved_data_set_and_a_folder_of_parts(tmp_path: Path) -> None:
    """Through ``datasets`` with pictures as its Image feature, in splits; and Parquet parts in the order of names."""
    datasets = pytest.importorskip("datasets")
    rows = [
        {"caption": f"c{k}", "jpg_0": {"bytes": picture(2 * k)}, "jpg_1": {"bytes": picture(2 * k + 1)}, "label_0": 1.0,
         "label_1": 0.0} for k in range(3)
    ]  # fmt: skip
    kinds = datasets.Features(
        {"caption": datasets.Value("string"), "jpg_0": datasets.Image(), "jpg_1": datasets.Image(),
         "label_0": datasets.Value("float32"), "label_1": datasets.Value("float32")}
    )  # fmt: skip
    parts = {"train": datasets.Dataset.from_list(rows[:2], kinds), "test": datasets.Dataset.from_list(rows[2:], kinds)}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    found = list(read_preferences(tmp_path / "saved"))
    assert [(p.text, p.split) for p in found] == [("c0", "train"), ("c1", "train"), ("c2", "test")]
    convert(tmp_path / "saved", tmp_path / "again")
    assert [p.text for p in read_preferences(tmp_path / "again")] == ["c2", "c0", "c1"]  # splits by name
    (tmp_path / "parts").mkdir()
    for k in (1, 0):
        write(
            tmp_path / "parts" / f"part-{k}.parquet", [{"prompt": f"p{k}", "chosen": "a", "rejected": "b", "extra": 1}]
        )
    assert [p.text for p in read_preferences(tmp_path / "parts")] == ["p0", "p1"]


# ---- resuming


def many(path: Path, n: int, bad: int = 0) -> Path:
    """n rows, every ``bad``-th of them without use."""
    rows = [{"prompt": f"p{k}", "chosen": f"a{k % 5}", "rejected": f"b{k % 3}"} for k in range(n)]
    return write(path, [r | {"rejected": r["chosen"]} if bad and k % bad == 0 else r for k, r in enumerate(rows)])


@pytest.mark.parametrize("stop", [1, EVERY - 1, EVERY, EVERY + 7, 2 * EVERY + 1])
def test_a_broken_conversion_goes_on_to_the_same_bytes(stop: int, tmp_path: Path) -> None:
    source = many(tmp_path / "in.jsonl", 2 * EVERY + 50, bad=50)
    whole = convert(source, tmp_path / "whole.jsonl", skip=True)
    convert(source, tmp_path / "parts.jsonl", skip=True, stop_after=stop)
    assert not (tmp_path / "parts.jsonl").exists()
    with (tmp_path / ".parts.jsonl.rows").open("a") as file:
        file.write('{"prompt": "half a ro')  # what a kill leaves
    outcome = convert(source, tmp_path / "parts.jsonl", skip=True)
    assert outcome.resumed == stop // EVERY * EVERY and outcome.written == whole.written == 2 * EVERY + 50 - 9
    assert outcome.left_out == whole.left_out and len(whole.left_out) == 9
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_other_settings_do_not_go_on_with_an_old_draft(tmp_path: Path) -> None:
    source = many(tmp_path / "in.jsonl", EVERY + 10)
    convert(source, tmp_path / "out.jsonl", stop_after=EVERY + 1)
    assert convert(source, tmp_path / "out.jsonl", unique=True).resumed == 0


# ---- repeated and contradicting rows


def test_repeated_rows_and_flipped_pairs(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p ", "chosen": "a", "rejected": " b"},  # the same but for spaces
        {"prompt": "p", "chosen": "b", "rejected": "a"},
        {"prompt": "q", "chosen": "b", "rejected": "a"},
        {"prompt": "p", "items": [{"text": "c", "rank": 1}, {"text": "b", "rank": 2}, {"text": "a", "rank": 3}]},
    ]
    source = write(tmp_path / "in.jsonl", rows)
    seen, found = Seen(), []
    for k, row in enumerate(rows, 1):
        found += [(k, p.what) for p in seen.add(from_row(row, f"row {k}"), f"row {k}")]
    assert found == [
        (2, "the same as row 1"),
        (3, "contradicts row 1: a flipped label?"),
        (5, "contradicts row 1: a flipped label?"),
    ]
    outcome = convert(source, tmp_path / "out.jsonl", unique=True, drop_flipped=True)
    assert (outcome.read, outcome.written, outcome.repeated, outcome.flipped) == (5, 2, 1, 2)
    assert [json.loads(line)["prompt"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == ["p", "q"]
    assert convert(source, tmp_path / "all.jsonl").written == 5


def flipped_rate() -> None:
    """20,000 labels of known margins, a share 0.15 flipped, seed 0: the rate within 4.5 of its standard errors; the
    probabilities are calibrated in four bins, z below 4.5."""
    g = np.random.default_rng(0)
    margin = 2.0 * g.standard_normal(20_000)
    true = g.random(20_000) < 1 / (1 + np.exp(-margin))
    flip = g.random(20_000) < 0.15
    stated = np.where(true != flip, margin, -margin)  # log-odds of the order as stated
    found = find_flips(stated)
    assert abs(found.rate - 0.15) < 4.5 * found.error and 0.003 < found.error < 0.006
    for low, high in ((0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1.0)):
        part = (found.probability >= low) & (found.probability < high)
        share, expected = flip[part].mean(), found.probability[part].mean()
        assert abs(share - expected) < 4.5 * math.sqrt(expected * (1 - expected) / part.sum()) + 0.01


def test_flipped_labels_are_found_from_margins() -> None:
    flipped_rate()
    clean = find_flips(np.full(50, 5.0))
    assert clean.rate < 0.02 and clean.probability.max() < 1e-3


@mutants(
    [
        Mutation(flips, "_posterior", "(1 - e) * right", "right", flipped_rate),
        Mutation(flips, "_posterior", "e * wrong /", "e * right /", flipped_rate),
        Mutation(flips, "find_flips", "slope**2", "slope", flipped_rate),
    ]
)
def test_mutations_are_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)


# ---- statistics


def test_statistics() -> None:
    numbers = Statistics()
    numbers.add(preference("p", Item("long", score=2.0, model="x"), Item("ab", score=1.0, model="y"), source="s"))
    numbers.add(preference("p", Item("a", score=0.0, model="y"), Item("abc", score=1.0, model="x"), split="test"))
    tie = (Item("a", rank=1), Item("b", rank=1), Item("c", rank=3))
    numbers.add(Preference("qq", tie))
    numbers.add(Preference("q", (Item(image="a.png", label=True), Item(image="b.png", label=False))))
    data = numbers.data()
    assert (data["rows"], data["prompts"], data["pairs"], data["ties"]) == (4, 3, 4, 1)
    assert data["splits"] == {"train": 3, "test": 1} and data["kinds"] == {"texts": 7, "pictures": 2}
    assert data["winner is longer"] == 0.5 and data["labels agree with scores"] == 0.5 and data["labelled good"] == 0.5
    assert data["characters"]["prompt"]["mean"] == 1.25 and data["scores"]["score"]["max"] == 2.0
    assert data["win share by model"] == {"x": 0.5, "y": 0.5} and data["items of a row"] == {"2": 3, "3": 1}


# ---- rows that are wrong


OWN_MISTAKES = [
    ({"chosen": "a", "rejected": "b"}, "f, row 1 has no 'prompt'"),
    ({"prompt": "p", "chosen": "a"}, "f, row 1 must have either 'chosen' and 'rejected', or 'items'"),
    ({"prompt": "p", "chosn": "a"}, "f, row 1: 'chosn' is no key of a row: did you mean chosen?"),
    ({"prompt": "p", "items": []}, "f, row 1: 'items' must be a list of at least one item"),
    ({"prompt": 3, "chosen": "a", "rejected": "b"}, "f, row 1: the prompt must be text, or a conversation"),
    ({"prompt": "p", "chosen": 3, "rejected": "b"}, "f, row 1, chosen must be text or an object, not 3"),
    ({"prompt": "p", "chosen": {"txt": "a"}, "rejected": "b"}, "f, row 1, chosen: 'txt' is no key of an item"),
    ({"prompt": "p", "chosen": {}, "rejected": "b"}, "f, row 1, chosen must have 'text' or 'image', one of them"),
    (
        {"prompt": "p", "chosen": {"text": "a", "score": math.nan}, "rejected": "b"},
        "f, row 1, chosen: 'score' must be a finite number, not nan",
    ),
    ({"prompt": "p", "items": [{"text": "a", "rank": 0}]}, "f, row 1, item 1: 'rank' must be a whole number from 1"),
    ({"prompt": "p", "items": [{"text": "a", "label": 1}]}, "f, row 1, item 1: 'label' must be true or false, not 1"),
    ({"prompt": "p", "items": ["a"], "split": 3}, "f, row 1: 'split' must be text, not 3"),
    ({"prompt": "p", "chosen": "a", "rejected": []}, "f, row 1: 'rejected' must be an item, or a list of at least one"),
    ({"prompt": "p", "chosen": "a", "rejected": ["b", 3]}, "f, row 1, rejected 2 must be text or an object, not 3"),
    (
        {"prompt": "p", "chosen": {"text": "abc", "segments": [[0, 2], [1, 4]]}, "rejected": "b"},
        "f, row 1, chosen: segment 2 must be [start, end] or [start, end, weight] with 0 <= start < end <= 3",
    ),
    (
        {"prompt": "p", "chosen": {"text": "abc", "segments": [[0, 2, -1]]}, "rejected": "b"},
        "f, row 1, chosen, segment 1: its weight must be positive, not -1",
    ),
    (
        {"prompt": "p", "items": [{"image": "a.png", "segments": [[0, 1]]}]},
        "f, row 1, item 1: only a text has 'segments'",
    ),
]


@pytest.mark.parametrize(("row", "sentence"), OWN_MISTAKES)
def test_mistakes_of_the_schema(row: dict[str, Any], sentence: str) -> None:
    with pytest.raises(GirsanovError) as error:
        from_row(row, "f, row 1")
    assert str(error.value).startswith(sentence)


def test_rows_that_have_the_form_but_no_use(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG no picture")
    cases = [
        (preference("p", Item("a"), Item("a")), "chosen equals rejected", True),
        (preference("  ", Item("a"), Item("b")), "the prompt is empty", True),
        (preference("p", Item("a"), Item(" ")), "rejected is empty", True),
        (preference("p", Item("a"), Item(image="x.png")), "there is no picture", True),
        (preference("p", Item(image="bad.png"), Item(image="bad.png")), "is no readable picture", True),
        (Preference("p", (Item("a", rank=1), Item("b"))), "some items have a rank and others have none", True),
        (Preference("p", (Item("a"), Item("b"))), "nothing tells its items apart", False),
        (preference("p", Item("a", score=1.0), Item("b", score=2.0)), "the better item has the lower score", False),
    ]
    for row, what, is_error in cases:
        found = list(check_row(row, "row 3", tmp_path))
        assert any(what in p.what and p.error == is_error for p in found), (what, found)
    assert not list(check_row(preference("p", Item("a", score=2.0), Item("b", score=1.0)), "row 3", tmp_path))


BROKEN = [
    ("a.jsonl", '{"prompt": "p"\n', "a.jsonl, row 1 is no JSON"),
    ("a.jsonl", "[1]\n", "a.jsonl, row 1 must be an object, not list"),
    ("a.jsonl", "", "has no rows"),
    ("a.json", '{"a": 1}', "must hold a list of rows, not one dict"),
    ("a.csv", "prompt,chosen,rejected\np,a\n", "a.csv, row 1 has another number of cells than the header"),
    ("a.parquet", "no table", "is no readable Parquet file"),
    ("a.xlsx", "x", "is of no kind that is read here: .jsonl, .json, .csv, .tsv, .parquet, or a folder of them"),
    ("a.jsonl", '{"foo": 1}\n', "a.jsonl, row 1 is of no layout known here (its columns: foo)"),
]


@pytest.mark.parametrize(("name", "text", "sentence"), BROKEN)
def test_files_that_cannot_be_read(name: str, text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(GirsanovError) as error:
        list(read_preferences(tmp_path / name))
    assert sentence in str(error.value)


def test_other_mistakes(tmp_path: Path) -> None:
    source = many(tmp_path / "in.jsonl", 3)
    flat = write(tmp_path / "flat.jsonl", [{"instruction": "p", "completions": 3}])
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    for call, sentence in (
        (lambda: open_preferences(tmp_path / "none.jsonl"), "there is no file"),
        (lambda: open_preferences(source, "hh-rlf"), "'hh-rlf' is no layout: did you mean hh-rlhf?"),
        (lambda: open_preferences(empty), "holds no .parquet or .jsonl files, and is no saved data set"),
        (lambda: open_preferences(tmp_path / "bytes.jsonl"), "is no text in UTF-8"),
        (lambda: convert(source, source), "exists: name a new file, or remove it"),
        (lambda: list(read_preferences(source, "helpsteer")), "has no 'response', which this layout needs"),
        (lambda: list(read_preferences(flat, "ultrafeedback")), "row 1 has not the form of its layout (TypeError"),
        (lambda: list(read_preferences(source, "hpd")), "has no 'image_path', which this layout needs"),
        (lambda: find_flips([]), "flipped labels are found from one margin a row: give at least one"),
        (lambda: find_flips([1.0, math.inf]), "the margin of row 2 is not finite: leave it out"),
    ):
        with pytest.raises(GirsanovError) as error:
            call()
        assert sentence in str(error.value)


def test_layouts_name_the_place_of_a_mistake(tmp_path: Path) -> None:
    changes = {
        "pick-a-pic": ({"label_0": math.nan}, "pick.jsonl, row 2: 'label_0' must be a finite number, not nan"),
        "hpd": ({"human_preference": [1]}, "hpd.json, row 2 needs 'human_preference' or 'rank'"),
        "image-reward": ({"rank": "x"}, "'rank' must be a whole number from 1, not 'x'"),
        "ultrafeedback-binary": ({"chosen": "x"}, "row 2: 'chosen' must be a conversation"),
        "hh-rlhf": (
            {"rejected": "\n\nHuman: else\n\nAssistant: x"},
            "hh.jsonl, row 2: chosen and rejected must be the",
        ),
        "richhf": ({"prompt": None}, "rich.jsonl, row 2 has no 'prompt': RichHF-18K ships none"),
        "helpsteer-preference": ({"preference_strength": None}, "row 2: 'preference_strength' must be a finite number"),
    }
    for name, (change, sentence) in changes.items():
        file, rows = FILES[name]
        if name == "pick-a-pic":
            file, rows = "pick.jsonl", [{**r, "jpg_0": "a.png", "jpg_1": "b.png"} for r in rows]
        file = file.replace("parquet", "jsonl")
        path = write(tmp_path / file, [rows[0], {**rows[0], **change}])
        with pytest.raises(GirsanovError) as error:
            list(read_preferences(path, name))
        assert sentence in str(error.value), name


# ---- training from a file


def encode(rows: list[Preference]) -> tuple[Cond, torch.Tensor, torch.Tensor]:
    sides = [torch.tensor([[float(r.items[k].content[1:])] for r in rows]) for k in (0, 1)]
    return Cond({}, torch.zeros(len(rows), dtype=torch.int64)), *sides


def test_pairs_of_a_file_are_served_in_epochs_without_reading_it_whole(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{k}", "chosen": f"a{k}", "rejected": f"b{-k}", "split": "ab"[k % 2]} for k in range(20)]
    path = write(tmp_path / "in.jsonl", rows)
    file = RowFile(path, "a")
    assert len(file) == 10 and file[3].items[0].content == "a6"
    source = PairFile(file, encode, batch_size=4)
    seen = torch.cat([source.batch(i).chosen[:, 0] for i in range(5)])
    assert sorted(seen[:10].tolist()) == [float(k) for k in range(0, 20, 2)]
    one, two = source.batch(3), [source.batch(3, rank, 2) for rank in (0, 1)]
    assert torch.equal(torch.cat([p.chosen for p in two]), one.chosen) and one.meta[0] == f"p{int(one.chosen[0, 0])}"
    assert torch.equal(one.rejected, -one.chosen)
    again = PairFile(RowFile(path, "a"), encode, batch_size=4)  # a resumed run needs no position
    assert torch.equal(again.batch(3).chosen, one.chosen)


def test_files_that_cannot_be_trained_on(tmp_path: Path) -> None:
    bad = write(
        tmp_path / "tie.jsonl", [{"prompt": "p", "items": [{"text": "a", "rank": 1}, {"text": "b", "rank": 1}]}]
    )
    (tmp_path / "text.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\nno json\n')
    for call, sentence in (
        (lambda: PairFile(RowFile(bad), encode).batch(0), "tie.jsonl, row 1 is no pair of a better and a worse item"),
        (lambda: RowFile(bad, "test"), "has no rows of the split 'test'"),
        (lambda: RowFile(tmp_path / "text.jsonl", "train"), "text.jsonl, row 2 is no object in JSON"),
        (lambda: RowFile(tmp_path / "text.jsonl")[1], "text.jsonl, row 2 is no JSON"),
        (lambda: RowFile(tmp_path / "none.jsonl"), "girsanov data convert writes one"),
    ):
        with pytest.raises(GirsanovError) as error:
            call()
        assert sentence in str(error.value)


# ---- the command line


def test_data_on_the_command_line(tmp_path: Path, capsys: Any) -> None:
    rows = [
        {"prompt": "p", "chosen": {"text": "aaa", "score": 1.0}, "rejected": {"text": "b", "score": 2.0}},
        {"prompt": "p", "chosen": "c", "rejected": "c"},
        {"prompt": "p", "chosen": "d"},
        {"prompt": "p", "chosen": "b", "rejected": "aaa"},
    ]
    source = str(write(tmp_path / "in.jsonl", rows))
    assert main(["data", "check", source, "--json", str(tmp_path / "check.json")]) == 1
    told = capsys.readouterr().out
    assert "error: in.jsonl, row 2: chosen equals rejected" in told
    assert "error: in.jsonl, row 3 must have either 'chosen' and 'rejected', or 'items'" in told
    assert "note: in.jsonl, row 1: the better item has the lower score (1 against 2): a flipped label?" in told
    assert "note: in.jsonl, row 4: contradicts in.jsonl, row 1: a flipped label?" in told
    assert told.endswith("4 rows of the layout girsanov: 2 with an error, 2 notes\n")
    assert json.loads((tmp_path / "check.json").read_text())["rows"] == 4
    assert main(["data", "stats", source, "--json", str(tmp_path / "stats.json")]) == 0
    told = capsys.readouterr().out
    assert "unreadable rows              1" in told and "winner is longer" in told
    assert json.loads((tmp_path / "stats.json").read_text())["rows"] == 3
    out = str(tmp_path / "out.jsonl")
    assert main(["data", "convert", source, "--out", out]) == 2
    assert "error: in.jsonl, row 2: chosen equals rejected (nothing was written" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir() if "out" in p.name] == []
    assert main(["data", "convert", source, "--out", out, "--skip", "--drop-flipped"]) == 0
    told = capsys.readouterr().out
    assert (
        "left out: in.jsonl, row 3 must have" in told
        and "1 written to" in told
        and "1 contradicting an earlier" in told
    )
    assert main(["data", "convert", source]) == 2
    assert "name it with --out NAME.jsonl" in capsys.readouterr().err
    assert main(["data", "check", out]) == 0


def test_pictures_that_come_as_bytes_are_looked_at_and_kept_once(tmp_path: Path, capsys: Any) -> None:
    rows = [
        {"caption": "c", "jpg_0": picture(1), "jpg_1": picture(2), "label_0": 1.0, "label_1": 0.0},
        {"caption": "d", "jpg_0": picture(1), "jpg_1": picture(2)[:40], "label_0": 1.0, "label_1": 0.0},
        {"caption": "e", "jpg_0": picture(1), "jpg_1": b"text", "label_0": 1.0, "label_1": 0.0},
    ]
    source = write(tmp_path / "in.parquet", rows)
    assert main(["data", "check", str(source)]) == 1
    told = capsys.readouterr().out
    assert "row 2, image 1: 40 bytes that are no readable picture" in told
    assert "row 3, image 1: 4 bytes that are no JPEG, PNG, WebP, GIF or BMP picture" in told
    assert main(["data", "convert", str(source), "--out", str(tmp_path / "out.jsonl"), "--skip"]) == 0
    assert "2 more" not in capsys.readouterr().out
    kept = [p for p in (tmp_path / "out-images").rglob("*.png")]
    assert len(kept) == 3  # of row 2 the bytes were kept before they were looked at
    assert to_row(next(read_preferences(tmp_path / "out.jsonl")))["chosen"]["image"].startswith("out-images/")
