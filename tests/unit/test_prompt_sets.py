"""Prompts from files and data sets: the same prompts and metadata from every kind, and a sentence for every mistake."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from girsanov.errors import GirsanovError
from girsanov.prompt_sets import PromptSet, read_prompts

ROWS = [{"prompt": "a red fox", "count": 1}, {"prompt": " two blue cubes ", "count": 2}, {"prompt": "", "count": 3}]
TEXTS = ("a red fox", "two blue cubes")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows in the form of the file's ending."""
    match path.suffix:
        case ".txt":
            path.write_text("\n".join(row["prompt"] for row in rows) + "\n\n")
        case ".json":
            path.write_text(json.dumps(rows))
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
        case ".csv" | ".tsv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
                writer.writeheader()
                writer.writerows(rows)
        case ".parquet":
            parquet = pytest.importorskip("pyarrow.parquet")
            import pyarrow

            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("ending", ["txt", "json", "jsonl", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_prompts(ending: str, tmp_path: Path) -> None:
    found = read_prompts(str(write(tmp_path / f"p.{ending}", ROWS)))
    assert found.texts == TEXTS
    kept = [{} if ending == "txt" else {"count": row["count"]} for row in ROWS[:2]]
    assert [{k: int(v) for k, v in m.items()} for m in found.metadata] == kept


def test_columns_and_limits(tmp_path: Path) -> None:
    rows = [{"caption": "one", "text": "two", "image": "a.png"}, {"caption": "three", "text": "four", "image": "b.png"}]
    path = str(write(tmp_path / "p.csv", rows))
    assert read_prompts(path).texts == ("two", "four")
    found = read_prompts(path, column="caption", limit=1)
    assert found == PromptSet(("one",), ({"text": "two", "image": "a.png"},))
    assert read_prompts(path).column("image") == ["a.png", "b.png"]
    with pytest.raises(GirsanovError, match="the prompts have no column 'mask': it has caption, image"):
        read_prompts(path).column("mask")


def test_a_folder_of_a_data_set(tmp_path: Path) -> None:
    """As ``datasets`` reads it, both a folder of files and one that was saved."""
    datasets = pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", ROWS)
    write(tmp_path / "set" / "test.jsonl", ROWS[:1])
    assert read_prompts(str(tmp_path / "set")).texts == TEXTS
    assert read_prompts(str(tmp_path / "set"), split="test").texts == TEXTS[:1]
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    assert read_prompts(str(tmp_path / "saved")).metadata[1] == {"count": 2}
    with pytest.raises(GirsanovError, match="no data set of that name with a split 'other'"):
        read_prompts(str(tmp_path / "set"), split="other")


MISTAKES = {
    "missing.txt": (None, "there is no file .*missing.txt"),
    "missing.csv": (None, "there is no file .*missing.csv"),
    "empty.txt": ("", "holds no prompts: give at least one"),
    "column.csv": ("name,count\nfox,1\n", "has no column 'prompt' or 'text' or 'caption': it has name, count"),
    "bad.jsonl": ('{"prompt": "a"}\n{"prompt": \n', "bad.jsonl, row 2"),
    "list.json": ('{"prompt": "a"}', "must hold a list of rows"),
    "words.json": ('["a", "b"]', "words.json, row 1"),
    "blank.csv": ("prompt,count\n,1\n", "all prompts of .* are empty"),
    "some.docx": ("a", "is of no kind that is read here: .jsonl"),
    "bytes.txt": (b"\xff\xfe\n", "is no text in UTF-8"),
    "bytes.csv": (b"prompt\n\xff\xfe\n", "is no text in UTF-8"),
    "broken.parquet": (b"PAR1", "is no readable Parquet file"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_a_sentence(name: str, tmp_path: Path) -> None:
    content, sentence = MISTAKES[name]
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(GirsanovError, match=sentence) as error:
        read_prompts(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_a_name_without_network_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GirsanovError, match="there is no file nobody/nothing, and no data set of that name"):
        read_prompts("nobody/nothing")


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(GirsanovError, match=r"pip install 'girsanov\[data\]'"):
        read_prompts("owner/name")
