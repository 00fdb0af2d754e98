"""Reward models on a tiny CLIP and a tiny language model, from the command line to their use."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel

from girsanov.cli import main
from girsanov.config import Part, make
from girsanov.errors import GirsanovError
from girsanov.jsonl import write_rows
from girsanov.judging import Answer, BothOrders, Comparison, RewardJudge
from girsanov.judging.report import criteria
from girsanov.language.rewards import TextReward
from girsanov.reward_models import Comparisons, load_reward_model
from girsanov.reward_models.fronts import Squares, WithLength, picture, requests
from girsanov.reward_models.frozen import Clip, Language
from girsanov.reward_models.losses import REWARD_LOSSES, reward_loss
from girsanov.reward_models.readings import ByFeatures, ByGate
from girsanov.reward_models.sources import file_source
from girsanov.reward_models.training import check_scores, train_reward_model
from girsanov.rewards import Reward, load_reward
from girsanov.train import TrainConfig
from tests.clip_models import save_clip
from tests.language_models import chat, llama

WORDS = ["the", "quick", "brown", "fox", "red", "pill"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a language model, a CLIP, rated texts and pictures."""
    path, rng = tmp_path_factory.mktemp("home"), random.Random(0)
    tokenizer = chat()
    llama(len(tokenizer), width=32, places=96, scale=2.0).float().save_pretrained(path / "lm")
    tokenizer.save_pretrained(path / "lm")
    save_clip(path / "clip")
    rows = []
    for i in range(60):
        items = []
        for polite in (0, 1):
            n = rng.randint(1, 5)
            text = ("please " if polite else "now ") + " ".join(rng.choices(WORDS, k=n))
            rated = {"help": 2.0 * polite + 0.4 * n, "true": float(text.count("fox")) + 0.3 * n, "long": float(n)}
            items.append({"text": text, "score": 3.0 * polite + rng.random(), "scores": rated})
        rows.append({"prompt": f"take {i}", "chosen": items[1], "rejected": items[0]})
    write_rows(path / "texts.jsonl", rows)
    rows = []
    for i in range(40):
        names = []
        for kind, level in (("bright", 220), ("dark", 40)):
            pixels = np.clip(level + np.random.default_rng((i, level)).normal(0, 12, (20 + i % 2, 24, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(path / f"{kind}{i}.png")
            names.append({"image": f"{kind}{i}.png"})
        rows.append({"prompt": f"a photo of a red fox {i % 5} {i}", "chosen": names[0], "rejected": names[1]})
    write_rows(path / "pictures.jsonl", rows)
    return path


def answers(home: Path) -> list[str]:
    for name in ("kind", "rude"):
        start = "please" if name == "kind" else "now"
        rows = [{"prompt": f"take {i}", "answer": f"{start} {WORDS[i]}"} for i in range(5)]
        write_rows(home / f"{name}.jsonl", rows)
    return [str(home / "kind.jsonl"), str(home / "rude.jsonl")]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("head", ["--lr", "0.02"], "log loss"),
        ("pair", ["--head", "mlp", "--members", "2", "--loss", "regression"], "squared error of the given scores"),
        (
            "gate",
            ["--objectives", "all", "--debias", "long", "--lr", "0.02"],
            "verbosity +1.000 before and +0.0e+00 after",
        ),
        ("length", ["--objectives", "help,true", "--debias", "length", "--lr", "0.02"], "help: "),
        ("lora", ["--lora", "2", "--lr", "0.01"], "accuracy in training"),
    ],
)
def test_texts_read_by_a_language_model(home, capsys, name, options, said) -> None:
    """60 rows whose polite answer is better, 40 updates; the folder is a judge and a reward of texts."""
    out = str(home / name)
    command = ["train-reward", str(home / "texts.jsonl"), "--out", out, "--model", str(home / "lm"), *options]
    assert main([*command, "--iterations", "40", "--batch", "16", "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert said in told and f"use it as reward={out}" in told
    found = json.loads((home / name / "evaluation.json").read_text())
    assert found["held_out"]["pairs"]["accuracy"]["value"] > 0.7
    assert ("objectives" in found) == ("--objectives" in options)
    assert main(["judge", *answers(home), "--score", out, "--soft", "--out", str(home / "v.jsonl")]) == 0
    assert "kind over rude" in capsys.readouterr().out
    model, asked, texts = load_reward_model(out), ["take 1", "take 1"], ["please fox", "now fox"]
    scores = model.texts(asked, texts)
    assert scores[0] > scores[1] and not model.differentiable
    torch.testing.assert_close(make(TextReward, Part(out))(asked, texts).float(), scores)
    torch.testing.assert_close(model.texts(asked[1:], texts[1:]), scores[1:])  # alone and in a batch
    value = RewardJudge(model, 1.0)([Comparison("take 1", *(Answer(t) for t in texts))])[0].value
    assert value == pytest.approx(float(torch.sigmoid(scores[0] - scores[1])), abs=1e-6)
    if name == "lora":
        assert (home / name / "model.safetensors").stat().st_size < 60_000  # not the model
        with pytest.raises(GirsanovError, match="does not read pictures"):
            model.pictures(["p"], [b""])


def test_another_model_under_the_same_name_is_refused(home, tmp_path) -> None:
    tokenizer = chat()
    place = tmp_path / "lm"
    for seed in (0, 1):
        llama(len(tokenizer), width=32, places=96, seed=seed).float().save_pretrained(place)
        tokenizer.save_pretrained(place)
        if seed == 0:
            source = home / "texts.jsonl"
            for name, more in (("a", []), ("b", ["--lora", "2"])):
                command = ["train-reward", str(source), "--out", str(tmp_path / name), "--model", str(place), *more]
                assert main([*command, "--iterations", "1", "--device", "cpu"]) == 0
    for name in ("a", "b"):
        with pytest.raises(GirsanovError, match="is not the model that this reward model was trained on"):
            load_reward_model(tmp_path / name).texts(["p"], ["a"])


@pytest.mark.parametrize("options", [["--features"], []], ids=["clip", "pixels"])
def test_pictures_of_any_size_have_a_differentiable_reward(home, capsys, options) -> None:
    """Bright pictures are preferred; a head on a frozen CLIP, and pixels of pictures that are resized on the way."""
    out = str(home / f"pictures{len(options)}")
    more = [*options, str(home / "clip"), "--lr", "0.01"] if options else ["--size", "8"]
    command = ["train-reward", str(home / "pictures.jsonl"), "--out", out, *more, "--held-out", "0.4"]
    assert main([*command, "--iterations", "60", "--device", "cpu"]) == 0
    assert json.loads(Path(out, "evaluation.json").read_text())["held_out"]["pairs"]["accuracy"]["value"] > 0.9
    reward, ask = load_reward(out), requests(["a photo of a red fox", "three blue cubes"])
    assert reward.differentiable and isinstance(make(Reward, Part(out)), type(reward))
    x = torch.rand(2, 3, 40, 30, generator=torch.Generator().manual_seed(0)).sub_(0.5).requires_grad_(True)
    (gradient,) = torch.autograd.grad(reward(x, ask).sum(), x)
    assert bool(gradient.isfinite().all()) and float(gradient.abs().max()) > 0
    assert float(reward(x.detach() * 0 + 0.7, ask).min()) > float(reward(x.detach() * 0 - 0.7, ask).max())
    for name in ("bright", "dark"):
        rows = [{"prompt": f"p{i}", "image": f"{name}{i}.png", "model": name} for i in range(4)]
        write_rows(home / f"{name}.jsonl", rows)
    files = [str(home / f"{n}.jsonl") for n in ("bright", "dark")]
    assert main(["judge", *files, "--score", out, "--out", str(home / "v.jsonl")]) == 0
    assert "bright over dark: 100.0%" in capsys.readouterr().out
    model = load_reward_model(out)
    with pytest.raises(GirsanovError, match="some of these answers are the one and some the other"):
        RewardJudge(model)([Comparison("p", Answer("a"), Answer(image=(home / "dark0.png").read_bytes()))])
    with pytest.raises(GirsanovError, match="does not read texts"):
        model.texts(["p"], ["a"])


def test_features_are_those_of_the_models(home) -> None:
    """CLIP's in transformers' own words, the sum of the second half over S the cosine; a text's last hidden state."""
    clip, ask = Clip.of(str(home / "clip")), requests(["a photo of a red fox"])
    phi = clip.images(picture(home / "bright0.png"), ask)
    s = phi.shape[1] // 2
    torch.testing.assert_close(phi[:, :s].norm(dim=1), torch.full((1,), float(s) ** 0.5))
    torch.testing.assert_close(phi[:, s:].mean(1), clip.towers.agreement(picture(home / "bright0.png"), list(ask.meta)))
    assert isinstance(clip.towers.model, CLIPModel)
    front = WithLength(Language.of(str(home / "lm")))
    two = front.texts(["take 1", "take 22"], ["please", "the quick brown fox"])
    net, encoder = front.inner.loaded.net, front.inner.loaded.encoder
    for row, (p, a) in zip(two, (("take 1", "please"), ("take 22", "the quick brown fox")), strict=True):
        ids = torch.tensor([encoder.row(p, a)[0]])
        with torch.no_grad():
            state = net.lm(ids, output_hidden_states=True).hidden_states[-1][0, -1]
        torch.testing.assert_close(row[:-1], state, rtol=1e-4, atol=1e-5)
        assert float(row[-1]) == pytest.approx(np.log1p(len(a)))


def test_squares_keep_a_grey_picture_grey() -> None:
    x = torch.linspace(-1, 1, 48).reshape(1, 1, 6, 8)
    same, ask = x.expand(-1, 3, -1, -1), requests(["p"])
    torch.testing.assert_close(Squares(4, 1).images(same, ask), Squares(4, 1).images(x, ask))
    torch.testing.assert_close(Squares(4, 3).images(x, ask), Squares(4, 3).images(same, ask))
    square = torch.rand(1, 3, 4, 4) * 2 - 1
    torch.testing.assert_close(Squares(4).images(square, ask), square)


def test_losses_with_numbers_and_the_scores_they_need() -> None:
    assert reward_loss("margin:0.5") == REWARD_LOSSES["margin"](0.5)
    items, score = torch.randn(3, 3, 2), torch.tensor([[2.0, 1.0, 0.0], [1.0, 0.0, torch.nan], [3.0, 1.0, 2.0]])
    valid = torch.tensor([[True, True, True], [True, True, False], [True, True, True]])
    for name in REWARD_LOSSES:
        check_scores(reward_loss(name), Comparisons(items, valid=valid, score=score.nan_to_num(5.0)))
    bare = Comparisons(items, score=torch.full((3, 3), torch.nan))
    for name, said in (("margin", "3 of 3 comparisons have none"), ("regression", "none has one")):
        with pytest.raises(GirsanovError, match=said):
            check_scores(reward_loss(name), bare)
    for spec, said in (("choice:2", "takes no number"), ("margin:x", "no finite number"), ("noisy:nan", "no finite")):
        with pytest.raises(GirsanovError, match=said):
            reward_loss(spec)


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        ("texts", ["--features", "clip"], "compares texts, and this model reads pictures: use --model NAME"),
        ("pictures", ["--model", "lm"], "compares pictures, and this model reads texts: use --features CLIP"),
        ("texts", ["--model", "lm", "--features", "clip"], "give one of them"),
        ("texts", ["--lora", "2"], "give it with --model"),
        ("texts", ["--objectives", "all"], "objectives are heads on a frozen model"),
        ("texts", ["--model", "lm", "--debias", "long"], "name them with --objectives"),
        ("texts", ["--model", "lm", "--objectives", "help,tru"], "'tru' is no rating of this file: did you mean true?"),
        ("texts", ["--model", "lm", "--objectives", "help"], "a gate weighs two objectives or more"),
        ("texts", ["--model", "lm", "--objectives", "all", "--debias", "lon"], "did you mean long?"),
        ("texts", ["--model", "lm", "--head", "deep"], "'deep' is no head"),
        ("texts", ["--model", "nowhere/at/all"], "there is no folder"),
        ("texts", ["--features", "lm"], "holds a model of the kind llama"),
    ],
)
def test_options_that_do_not_fit(home, capsys, monkeypatch, data, options, said) -> None:
    monkeypatch.chdir(home)
    assert main(["train-reward", f"{data}.jsonl", "--out", "no", "--device", "cpu", *options]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (home / "no").exists()


def test_other_bad_input(home, tmp_path) -> None:
    long = {"prompt": "take " * 300, "chosen": "a", "rejected": "b"}
    rows = [json.loads(line) for line in (home / "texts.jsonl").read_text().splitlines()]
    write_rows(tmp_path / "long.jsonl", [long, *rows[:12]])
    source = file_source(
        tmp_path / "long.jsonl", ByFeatures(Language.of(str(home / "lm"), max_length=64)), held_out=0.4
    )
    assert "row 1: the row has" in source.left_out[0]
    rated = [{"prompt": "p", "items": [{"text": "a", "scores": {"help": 1}}]}]
    write_rows(tmp_path / "rated.jsonl", rated)
    with pytest.raises(GirsanovError, match="says of no two items of one prompt which is better"):
        file_source(tmp_path / "rated.jsonl")
    front = Language.of(str(home / "lm"))
    parted = file_source(home / "texts.jsonl", ByGate(front, ("help", "true"), home / "texts.jsonl"))
    model = train_reward_model(
        parted.config, parted.train, train=TrainConfig(iterations=2), net=parted.net, front=parted.front
    )
    folder = model.save(tmp_path / "rm")
    settings = json.loads((folder / "reward.json").read_text())
    settings["front"] = {"kind": "with-length", "inner": {"kind": "mine.py:run"}}
    (folder / "reward.json").write_text(json.dumps(settings))
    with pytest.raises(GirsanovError, match="unknown front 'mine.py:run'"):
        load_reward_model(folder)
    (tmp_path / "how.txt").write_text("Judge the colours.\n")
    assert criteria(str(tmp_path / "how.txt")) == criteria("Judge the colours.") == "Judge the colours."
    with pytest.raises(GirsanovError, match="--criteria is empty"):
        criteria(" ")
    assert main(["judge", *answers(home), "--score", str(home)]) == 2
    tied = BothOrders(RewardJudge(model))([Comparison("p", Answer("a"), Answer("a"))])
    assert tied[0].value == 0.5
