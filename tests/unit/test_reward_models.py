"""Reward models: on disk, as rewards, from files of texts and pictures, and what is wrong said in one sentence."""

import json
import random

import pytest
import torch
from PIL import Image

from girsanov.cli import main
from girsanov.config import Part, make
from girsanov.errors import GirsanovError
from girsanov.jsonl import write_rows
from girsanov.judging import Answer, Comparison, ScoreJudge
from girsanov.reward_models import Comparisons, GatedConfig, load_reward_model, ranked, train_reward_model
from girsanov.reward_models.losses import reward_loss
from girsanov.reward_models.model import RewardModel
from girsanov.reward_models.scorers import FeaturesConfig, LinearConfig, PixelsConfig, TextConfig, encode_texts
from girsanov.reward_models.sources import digits_source, file_source
from girsanov.rewards import Bold, Reward, load_reward
from girsanov.train import TrainConfig
from girsanov.types import Cond, Prompts

CONFIGS = [
    LinearConfig(features=3, members=2),
    FeaturesConfig(features=3, width=4),
    PixelsConfig(shape=(1, 2, 2), classes=3, width=4, blocks=1),
    TextConfig(length=8, width=4, blocks=1, heads=2),
    GatedConfig(features=3, prompt=2, objectives=2, hidden=4),
]


def request(n: int) -> Prompts:
    zero = torch.zeros(n, dtype=torch.int64)
    tables = {"label": torch.arange(3), "prompt": torch.randn(3, 2)}
    return Prompts(Cond(tables, torch.arange(n) % 3), torch.arange(n), zero)


def items(config) -> torch.Tensor:
    if isinstance(config, TextConfig):
        return encode_texts(["a", "b", "c"], ["one", "two!", "x"], 8)
    return torch.randn(3, *getattr(config, "shape", (3,)))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c).__name__)
def test_a_saved_reward_model_is_the_same_reward(config, tmp_path) -> None:
    model = RewardModel(config, config.build(5), shift=0.25, notes={"data": "none"})
    x, ask = items(config), request(3)
    folder = model.save(tmp_path / "rm")
    for back in (load_reward_model(folder), load_reward(str(folder))):
        assert torch.equal(back(x, ask), model(x, ask)) and back.differentiable == model.differentiable
    part = Part("trained", {"path": str(folder), "pessimism": 1.0})
    built = make(Reward, part)
    assert torch.equal(built(x, ask), load_reward_model(folder, pessimism=1.0)(x, ask))
    assert load_reward_model(folder).notes == {"data": "none"}


def test_a_damaged_folder_is_told(tmp_path) -> None:
    folder = RewardModel(CONFIGS[0], CONFIGS[0].build()).save(tmp_path / "rm")
    with pytest.raises(GirsanovError, match="there is no saved model in"):
        load_reward_model(tmp_path)
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(GirsanovError, match=r"is damaged \(model.safetensors is not what was written\)"):
        load_reward_model(folder)
    settings = json.loads((folder / "reward.json").read_text())
    for change, said in (({"schema": 99}, "newer Girsanov"), ({"format": "x"}, "not written by Girsanov")):
        (folder / "reward.json").write_text(json.dumps(settings | change))
        with pytest.raises(GirsanovError, match=said):
            load_reward_model(folder)
    (folder / "reward.json").write_text(json.dumps(settings | {"scorer": {"kind": "os:system"}}))
    with pytest.raises(GirsanovError, match="unknown network 'os:system'"):
        load_reward_model(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(GirsanovError, match="holds something else"):
        RewardModel(CONFIGS[0], CONFIGS[0].build()).save(tmp_path / "mine")


@pytest.mark.parametrize(
    ("make_it", "said"),
    [
        (lambda: Comparisons(torch.zeros(2, 1, 3)), "K >= 2 items each"),
        (lambda: Comparisons(torch.zeros(2, 2, 3)), "chosen equals rejected in 2 rows (row 0 first)"),
        (lambda: Comparisons(torch.tensor([[[1.0], [torch.nan]]])), "row 0 holds numbers that are not finite"),
        (lambda: Comparisons.pairs(torch.zeros(2, 3), torch.ones(3, 3)), "differ in shape"),
        (lambda: Comparisons(torch.randn(2, 3, 1), valid=torch.tensor([[1, 1, 0], [1, 0, 1]]) > 0), "row 1 has fewer"),
        (lambda: Comparisons(torch.randn(2, 2, 1), score=torch.zeros(2, 3)), "score has shape [2, 3]"),
        (lambda: Comparisons(torch.randn(2, 2, 1), Cond({}, torch.zeros(3).long())), "3 conditions for 2 prompts"),
        (lambda: Comparisons(torch.randn(2, 2, 1)).split(0.1), "leaves nothing on one side"),
        (lambda: ranked(torch.randn(2, 2, 1), torch.zeros(2, 2), -1.0), "temperature must be at least 0"),
        (lambda: reward_loss("bradly-terry"), "did you mean bradley-terry?"),
        (lambda: RewardModel(CONFIGS[0], CONFIGS[0].build(), pessimism=-1.0), "pessimism must be at least 0"),
        (lambda: TextConfig(width=6, heads=4).build(), "4 heads do not divide a width of 6"),
        (lambda: encode_texts(["p", "p"], ["a", " "], 9), "the answer of row 1 is empty"),
        (
            lambda: RewardModel(CONFIGS[3], CONFIGS[3].build()).score(torch.zeros(1, 4).long()),
            "must hold 1 to 8 tokens",
        ),
        (lambda: RewardModel(CONFIGS[1], CONFIGS[1].build()).score(torch.zeros(1, 4)), "reads 3 numbers an item"),
        (lambda: RewardModel(CONFIGS[1], CONFIGS[1].build()).texts(["a"], ["b"]), "does not read texts"),
        (lambda: CONFIGS[4].build()(torch.zeros(1, 3)), "a gate reads features of the prompt"),
        (lambda: CONFIGS[4].one().fit_ratings(torch.zeros(2, 3), torch.full((2, 2), torch.nan)), "objective 0 has no"),
        (lambda: digits_source(Bold(), items=1), "ranks two digits or more"),
    ],
)
def test_bad_input_is_one_sentence(make_it, said) -> None:
    with pytest.raises(GirsanovError) as error:
        make_it()
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_text_that_is_too_long_keeps_its_answer() -> None:
    kept = [ord("e") + 1, ord("f") + 1, 257, *(ord(c) + 1 for c in "xyz")]
    assert encode_texts(["abcdef"], ["xyz"], 6).tolist() == [kept]
    assert encode_texts(["abcdef"], ["vwxyz!?"], 5).tolist() == [[257, *(ord(c) + 1 for c in "vwxy")]]


def test_epochs_are_a_function_of_the_iteration() -> None:
    data = Comparisons(torch.arange(24.0).reshape(6, 2, 2), batch_size=4)
    seen = torch.cat([data.batch(i).items[:, 0, 0] for i in range(3)])
    assert seen.sort().values.tolist() == sorted(2 * list(range(0, 24, 4)))
    halves = [data.batch(1, rank, 2).items for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), data.batch(1).items)


def polite(path, n: int) -> None:
    """Answers that say please are preferred."""
    rng, rows = random.Random(0), []
    for i in range(n):
        good, bad = f"please take {i % 7}", f"now take {i % 7}"
        rows.append({"prompt": f"how {i}", "chosen": good, "rejected": bad})
    rng.shuffle(rows)
    rows.insert(3, {"prompt": "bad", "chosen": "same", "rejected": "same"})
    scored = [{"text": t, "score": s} for t, s in (("a", 2), ("b", 1), ("c", 0))]
    ranks = [{"text": t, "rank": r} for t, r in (("a", 1), ("b", 2), ("c", 2))]
    rows += [{"prompt": "t", "items": scored}, {"prompt": "u", "items": ranks}]
    rows.append({"prompt": "v", "items": [{"text": "a", "label": True}, {"text": "b", "label": False}]})
    write_rows(path, rows)


def test_texts_from_a_file_on_the_command_line(tmp_path, capsys) -> None:
    """80 rows without noise in the labels, 40 updates: most held-out ones right; the model then judges answers."""
    polite(tmp_path / "polite.jsonl", 80)
    out = tmp_path / "rm"
    command = ["train-reward", str(tmp_path / "polite.jsonl"), "--out", str(out), "--iterations", "40", "--batch", "16"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "row 4: chosen equals rejected" in said and "nothing says which item is better" in said
    found = json.loads((out / "evaluation.json").read_text())["held_out"]["pairs"]
    assert found["accuracy"]["value"] > 0.8 and (out / "report.html").read_text().count("<svg") == 2
    model = load_reward_model(out)
    judge = ScoreJudge(lambda prompt, answer: float(model.texts([prompt], [answer.text])[0]))
    polite_one, rude = Answer("please take 9"), Answer("now take 9")
    assert judge([Comparison("how", polite_one, rude)])[0].value == 1.0
    files = []
    for name, answer in (("kind", polite_one), ("rude", rude)):
        files.append(str(tmp_path / f"{name}.jsonl"))
        write_rows(files[-1], [{"prompt": f"how {i}", "answer": answer.text} for i in range(3)])
    assert main(["judge", *files, "--score", str(out), "--out", str(tmp_path / "v.jsonl")]) == 0
    assert "kind over rude: 100.0%" in capsys.readouterr().out


def test_rankings_ties_and_rows_without_order(tmp_path) -> None:
    polite(tmp_path / "p.jsonl", 40)
    source = file_source(tmp_path / "p.jsonl", held_out=0.3, length=20)
    assert len(source.train) + len(source.test) == 43 and len(source.left_out) == 2  # u is two pairs
    widths = torch.cat([source.train.valid.sum(1), source.test.valid.sum(1)])  # type: ignore[union-attr]
    assert sorted(widths.tolist())[-2:] == [2, 3]
    with pytest.raises(GirsanovError, match="comparisons are to test on"):
        file_source(tmp_path / "p.jsonl", held_out=0.0)


def test_pictures_from_a_file(tmp_path) -> None:
    """Bright pictures are preferred; one picture is missing and left out by its row."""
    rows = []
    for i in range(24):
        names = []
        for kind, level in (("bright", 200), ("dark", 60)):
            Image.new("L", (9, 7), level + i).save(tmp_path / f"{kind}{i}.png")
            names.append({"image": f"{kind}{i}.png"})
        rows.append({"prompt": f"p{i}", "chosen": names[0], "rejected": names[1]})
    rows.append({"prompt": "gone", "chosen": {"image": "gone.png"}, "rejected": {"image": "dark0.png"}})
    write_rows(tmp_path / "pictures.jsonl", rows)
    source = file_source(tmp_path / "pictures.jsonl", held_out=0.4, size=4)
    assert source.config == PixelsConfig(shape=(1, 4, 4)) and "row 25" in source.left_out[0]
    model = train_reward_model(source.config, source.train, train=TrainConfig(iterations=30, lr=3e-3))
    gap = model.compared(source.test)
    assert bool((gap[:, 0] > gap[:, 1]).all())
    write_rows(tmp_path / "mixed.jsonl", [rows[0], {"prompt": "t", "chosen": "a", "rejected": "b"}])
    with pytest.raises(GirsanovError, match="texts in some rows and pictures in others"):
        file_source(tmp_path / "mixed.jsonl")


def test_digits_on_the_command_line(tmp_path, capsys) -> None:
    """An ensemble of two on 300 rankings of three digits; it is a reward with a gradient."""
    out = tmp_path / "rm"
    command = ["train-reward", "digits", "--out", str(out), "--items", "3", "--members", "2", "--limit", "300"]
    assert main([*command, "--loss", "plackett-luce", "--iterations", "60"]) == 0
    said = capsys.readouterr().out
    assert "spread between members" in said and "best item first" in said
    found = json.loads((out / "evaluation.json").read_text())["held_out"]
    assert found["pairs"]["accuracy"]["low"] > 0.6 and found["correlation"]["low"] > 0.4
    assert load_reward(str(out)).differentiable
    assert main(["train-reward", "digits", "--out", str(out), "--loss", "elo"]) == 2
    assert "'elo' is no loss of reward models" in capsys.readouterr().err
    model = load_reward_model(out)
    x = torch.randn(4, 1, 8, 8, requires_grad=True)
    ask = Prompts(Cond({"label": torch.arange(10)}, torch.arange(4)), torch.arange(4), torch.arange(4))
    (gradient,) = torch.autograd.grad(model(x, ask).sum(), x)
    assert bool(gradient.isfinite().all()) and float(gradient.abs().sum()) > 0
