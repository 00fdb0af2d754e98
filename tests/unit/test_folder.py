"""The run folder: made once, read back, cut back to a checkpoint."""

import json
from pathlib import Path

import pytest

from girsanov.disk import write_text
from girsanov.errors import GirsanovError
from girsanov.folder import RunFolder, clean


def make(path: Path) -> RunFolder:
    return RunFolder.create(path, "mixture", "girsanov run mixture", "a: 1\n")


def message(action: object, *args: object) -> str:
    with pytest.raises(GirsanovError) as error:
        action(*args)
    return str(error.value)


def test_a_folder_in_use_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "run"
    make(path).log(1, {"loss": 2.0})
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert message(make, path) == f"{path} already holds a run: continue it with --resume, or give another --out"
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    assert message(make, other) == f"{other} is not empty and holds no run: give another --out"
    assert message(make, other / "notes.txt") == f"{other / 'notes.txt'} is a file: give a folder with --out"


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    sentence = f"{tmp_path} holds no run: give the folder of a run (girsanov list shows them)"
    assert message(RunFolder.open, tmp_path) == sentence
    for text in ("[1]", "{", '{"format": "x", "schema": 1}', '{"format": "girsanov-run"}'):
        (tmp_path / "run.json").write_text(text)
        assert message(RunFolder.open, tmp_path) == f"{tmp_path}/run.json is not that of a run: give another folder"
    (tmp_path / "run.json").write_text('{"format": "girsanov-run", "schema": 9}')
    assert message(RunFolder.open, tmp_path) == (
        f"{tmp_path} was written by a newer girsanov (schema 9): upgrade the package"
    )


def test_one_process_at_a_time(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    with folder.locked():
        sentence = message(folder.locked().__enter__)
    assert sentence == (f"another process is training in {folder.path}: wait for it or stop it, or give another --out")
    with folder.locked():
        pass


def test_lines_come_back_by_kind(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    folder.log(0, {"judge": 0.5}, "evaluation")
    folder.log(1, {"loss": float("nan"), "grad_norm": float("inf")})
    folder.log(1, {"alarm": "x", "message": "y"}, "alarm")
    assert folder.records() == [{"iteration": 1, "loss": None, "grad_norm": None}]
    assert folder.records("evaluation") == [{"iteration": 0, "kind": "evaluation", "judge": 0.5}]
    assert [r["alarm"] for r in folder.records("alarm")] == ["x"]


def test_cutting_back_keeps_the_bytes_of_what_stays(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    for i in range(5):
        folder.log(i, {"loss": 1 / (i + 3)})
    kept = b"".join(folder.metrics.read_bytes().splitlines(keepends=True)[:3])
    with folder.metrics.open("a") as file:
        file.write('{"iteration": 2, "lo')  # killed within a line
    assert len(folder.records()) == 5
    folder.truncate(2)
    assert folder.metrics.read_bytes() == kept
    folder.truncate(-1)
    assert folder.metrics.read_bytes() == b""


def test_a_full_disk_under_the_metrics_is_one_sentence(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    folder.metrics.symlink_to("/dev/full")
    assert message(folder.log, 7, {"loss": 1.0}) == (
        "the disk is full: the line of iteration 7 in metrics.jsonl was not written, what was saved before is intact; "
        "free some space and go on with --resume"
    )


def test_text_is_replaced_at_once_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("girsanov.disk.sync", broken)
    with pytest.raises(GirsanovError, match="^the disk is full: a.txt was not written"):
        write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_json_lacks_becomes_null() -> None:
    assert clean({"a": [float("nan"), 1.0], "b": {"c": float("-inf")}}) == {"a": [None, 1.0], "b": {"c": None}}
    json.dumps(clean({"a": float("nan")}), allow_nan=False)
