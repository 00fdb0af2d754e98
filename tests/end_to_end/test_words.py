"""``girsanov run words`` on the command line: offline and online, resumed, sampled, with adapters, and its mistakes."""

import json
from pathlib import Path

import pytest

from girsanov.cli import main
from girsanov.recipes.words_data import load_words, word_encoder

SMALL = ["pretrain.iterations=30", "width=16", "layers=1", "samples=26", "pairs=40", "batch=16", "groups=4"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("GIRSANOV_CACHE", str(tmp_path_factory.getbasetemp() / "words-cache"))


def numbers(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "speed/"))} for line in lines]


def test_the_words_are_words() -> None:
    words, encoder = load_words(), word_encoder()
    assert len(words.words) > 1000 and "features" in words and "xqz" not in words
    batch = encoder.batch([(w[0], w[1:]) for w in words.words])
    assert encoder.texts(batch) == [w[1:] for w in words.words] and batch.tokens.shape[1] <= 13


@pytest.mark.parametrize("method", ["dpo", pytest.param("grpo", marks=pytest.mark.slow)])
def test_a_run_goes_on_as_if_it_had_not_stopped(method: str, tmp_path, capsys) -> None:
    """Four iterations at once, and two and two: the same numbers; then samples, with half the tuning."""
    common = ["--method", method, *SMALL, "evaluate_every=2", "checkpoint_every=2"]
    assert main(["run", "words", "--out", str(tmp_path / "whole"), *common, "train.iterations=4"]) == 0
    assert main(["run", "words", "--out", str(tmp_path / "parts"), *common, "train.iterations=2"]) == 0
    assert main(["run", "words", "--out", str(tmp_path / "parts"), "--resume", "train.iterations=4"]) == 0
    whole, parts = numbers(tmp_path / "whole"), numbers(tmp_path / "parts")
    skip = ("lr",)  # its schedule is constant, but the file of the shorter run has another end
    for a, b in zip(whole, parts, strict=True):
        assert {k: v for k, v in a.items() if k not in skip} == {k: v for k, v in b.items() if k not in skip}
    evaluation = [line for line in whole if line.get("kind") == "evaluation"][-1]
    assert {"reward", "judge", "diversity", "kl", "kl_se"} <= set(evaluation)
    assert (tmp_path / "whole" / "report.html").is_file()
    capsys.readouterr()
    assert main(["sample", str(tmp_path / "whole"), "-n", "26", "--strength", "0.5"]) == 0
    written = (tmp_path / "whole" / "samples" / "seed-0" / "words.txt").read_text().split("\n")[:26]
    assert [w[0] for w in written] == list("abcdefghijklmnopqrstuvwxyz")
    assert main(["evaluate", str(tmp_path / "whole")]) == 0
    assert "Real words" in capsys.readouterr().out


def test_adapters_and_a_reward_of_ones_own(tmp_path, capsys) -> None:
    (tmp_path / "mine.py").write_text("def ends(prompts, rests):\n    return [r.endswith('e') for r in rests]\n")
    out = tmp_path / "run"
    reward = f"reward={tmp_path / 'mine.py'}:ends"
    options = ["--method", "rloo", "--lora", *SMALL, reward, "train.iterations=2"]
    assert main(["run", "words", "--out", str(out), *options]) == 0
    assert "'ends'" in json.loads((out / "about.json").read_text())["description"]


def test_mistakes(tmp_path, capsys) -> None:
    assert main(["run", "words", "--out", str(tmp_path / "a"), "--method", "dppo"]) == 2
    assert "no language method: did you mean" in capsys.readouterr().err
    assert main(["run", "words", "--out", str(tmp_path / "a"), "reward=vowel"]) == 2
    assert "did you mean vowels" in capsys.readouterr().err
    assert main(["run", "words", "--out", str(tmp_path / "a"), "--method", "dpo", "method.beta=-1"]) == 2
    assert "beta of a preference loss must be positive" in capsys.readouterr().err
