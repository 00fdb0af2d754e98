"""``girsanov run language`` on the command line: model and tokenizer on disk, preferences in a file, and mistakes."""

import json
import sys
from pathlib import Path

import pytest
import torch

from girsanov.cli import main
from girsanov.jsonl import write_rows
from girsanov.language import Encoder
from girsanov.language.files import read_comparisons
from tests.language_models import chat, letters, llama

COLOURS = ("red", "blue", "green", "black", "white", "brown")
SMALL = ["samples=8", "max_tokens=6", "lora=2", "held_out=0.4", "evaluate_every=3", "checkpoint_every=3", "pictured=3"]


def pairs(path: Path, n: int = 24) -> Path:
    """Rows that prefer thanks to complaints."""
    rows = [
        {"prompt": f"take the {COLOURS[i % 6]} pill {i}", "chosen": "fine, thank you", "rejected": "how are <$x$>"}
        for i in range(n)
    ]
    write_rows(path, rows)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A Llama with random weights and a byte-pair tokenizer trained on a few lines, saved to disk."""
    place, tokenizer = tmp_path_factory.mktemp("model"), chat()
    llama(len(tokenizer), scale=2.0).float().save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl")


def numbers(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "speed/")) and k != "lr"} for line in lines]


def run(out: Path, model: Path, *options: str) -> int:
    return main(["run", "language", "--out", str(out), f"model={model}", *SMALL, *options])


def test_dpo_orders_pairs_of_prompts_that_it_has_not_seen(model, data, tmp_path, capsys) -> None:
    """Six iterations at once, and three and three, are the same; the accuracy goes from one half to nearly one."""
    tune = [f"data={data}", "train.lr=0.02", "train.warmup=0", "train.micro_batch=5"]
    assert run(tmp_path / "whole", model, *tune, "train.iterations=6") == 0
    assert run(tmp_path / "parts", model, *tune, "train.iterations=3") == 0
    assert main(["run", "language", "--out", str(tmp_path / "parts"), "--resume", "train.iterations=6"]) == 0
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "parts")
    first, *_, last = (line for line in numbers(tmp_path / "whole") if line.get("kind") == "evaluation")
    assert first["reward"] == 0.5 and first["margin"] == 0.0 and first["kl"] == 0.0
    assert last["reward"] > 0.9 and last["reward_se"] > 0 and last["margin"] > 3 * last["margin_se"] > 0
    report = (tmp_path / "whole" / "report.html").read_text()
    assert "take the" in report and "Held-out pairs" in report and "It worked" in report
    about = json.loads((tmp_path / "whole" / "about.json").read_text())
    assert "peft.PeftModel" in about["load"]
    capsys.readouterr()
    assert main(["sample", str(tmp_path / "whole"), "-n", "3"]) == 0
    assert main(["evaluate", str(tmp_path / "whole")]) == 0
    assert "Margin of the implicit reward" in capsys.readouterr().out
    rows = (tmp_path / "whole" / "samples" / "seed-0" / "completions.jsonl").read_text().splitlines()
    assert [set(json.loads(row)) for row in rows] == [{"prompt", "completion"}] * 3


def test_what_is_written_is_read_by_peft(model, data, tmp_path) -> None:
    """The adapters in ``weights`` make plain transformers the tuned model of the run, to rounding."""
    import peft
    from transformers import AutoModelForCausalLM

    from girsanov.launch import load_run

    out = tmp_path / "run"
    assert run(out, model, f"data={data}", "train.iterations=2", "train.lr=0.02", "train.warmup=0") == 0
    _, parts = load_run(out, torch.device("cpu"))
    plain = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), out / "weights")
    ids = torch.arange(3, 9).unsqueeze(0)
    with torch.no_grad():
        tuned = parts.run.policy.net.lm(ids).logits
        base = AutoModelForCausalLM.from_pretrained(model)(ids).logits
        assert torch.allclose(plain(ids).logits, tuned, atol=1e-5)
        assert not torch.allclose(base, tuned, atol=1e-3)


@pytest.mark.parametrize("where", ["data", "prompts"])
def test_online_methods_complete_the_prompts(where: str, model, data, tmp_path) -> None:
    """With a reward of one's own, on the prompts of the comparisons or those of a text file."""
    (tmp_path / "mine.py").write_text("def short(prompts, completions):\n    return [-len(c) for c in completions]\n")
    (tmp_path / "prompts.txt").write_text("\n".join(f"the quick {c} fox" for c in (*COLOURS, *"abcdefghij")))
    given = {"data": f"data={data}", "prompts": f"prompts={tmp_path / 'prompts.txt'}"}[where]
    more = ["groups=2", "group_size=2", "method.sampling.max_tokens=4", "train.iterations=2"]
    out = tmp_path / "run"
    assert run(out, model, "--method", "grpo", f"reward={tmp_path / 'mine.py'}:short", given, *more) == 0
    last = numbers(out)[-1]
    assert {"reward", "reward_se", "kl", "length"} <= set(last)
    assert ("accuracy" in last) == (where == "data")


def test_all_weights(model, data, tmp_path) -> None:
    """Without adapters the whole model is written."""
    from transformers import AutoModelForCausalLM

    out = tmp_path / "run"
    assert run(out, model, "--method", "simpo", f"data={data}", "lora=null", "train.iterations=1") == 0
    found = AutoModelForCausalLM.from_pretrained(out / "weights").state_dict()
    base = AutoModelForCausalLM.from_pretrained(model).state_dict()
    assert set(found) == set(base) and any(not torch.equal(found[k], base[k]) for k in base)


def test_rows_that_cannot_be_used_are_left_out_and_told(model, tmp_path, capsys) -> None:
    path = pairs(tmp_path / "pairs.jsonl", 12)
    bad = [
        {"prompt": "same", "chosen": "fine", "rejected": "fine"},
        {"prompt": "none", "chosen": "", "rejected": "fine"},
        {"prompt": "long " * 100, "chosen": "fine", "rejected": "how"},
        {"prompt": "score", "chosen": {"text": "a", "score": "high"}, "rejected": {"text": "b"}},
        {"prompt": "score", "chosen": {"text": "a", "score": float("nan")}, "rejected": {"text": "b"}},
        {"prompt": "twice", "chosen": "fine", "rejected": ["how", "fine"]},
        {"prompt": "mark", "chosen": {"text": "fine", "segments": [[2, 9]]}, "rejected": "how"},
        {"prompt": "label", "items": [{"text": "fine", "label": True}]},
        {"prompt": "key", "chosen": "fine", "rejectd": "how"},
    ]
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in bad))
    assert run(tmp_path / "run", model, f"data={path}", "train.iterations=1") == 0
    said = capsys.readouterr()
    for sentence in (
        "pairs.jsonl, row 13: chosen equals rejected",
        "pairs.jsonl, row 14 has an empty completion",
        "pairs.jsonl, row 15 has",
        "tokens and a row at most 64",
        "pairs.jsonl, row 16, chosen: 'score' must be a finite number",
        "pairs.jsonl, row 17, chosen: 'score' must be a finite number",
    ):
        assert sentence in said.out + said.err
    facts = json.loads((tmp_path / "run" / "about.json").read_text())["facts"]
    assert facts["Left out"].endswith("8 in all")
    _, left_out = read_comparisons(Encoder(chat(), 64), path)
    for start in (
        "row 18: chosen equals rejected",
        "row 19, chosen: segment 1 must be [start, end]",
        "row 20 has labels alone",
        "row 21: 'rejectd' is no",
    ):
        assert any(start in sentence for sentence in left_out), start


def test_labels_alone_train_kto_and_no_method_that_compares(model, tmp_path, capsys) -> None:
    """Held-out good completions come to stand above bad ones; DPO refuses the file in one sentence; SPIN takes what is
    called good."""
    rows = [
        {"prompt": f"take the {COLOURS[i % 6]} pill {i}", "completion": ("fine, thank you", "how are")[i % 2],
         "label": i % 2 == 0}
        for i in range(30)
    ]  # fmt: skip
    path = tmp_path / "labels.jsonl"
    write_rows(path, [*rows, {"prompt": "p", "completion": "", "label": True}])
    tune = [f"data={path}", "train.lr=0.02", "train.warmup=0", "train.iterations=6"]
    assert run(tmp_path / "kto", model, "--method", "kto", *tune) == 0
    assert "row 31 has an empty completion" in "".join(capsys.readouterr())
    first, *_, last = (line for line in numbers(tmp_path / "kto") if line.get("kind") == "evaluation")
    assert first["reward"] == 0.5 and last["reward"] > 0.9
    description = json.loads((tmp_path / "kto" / "about.json").read_text())["description"]
    assert "labelled completions to train on" in description
    assert run(tmp_path / "dpo", model, "--method", "dpo", *tune) == 2
    said = capsys.readouterr().err
    assert "row 1 has labels alone: kto and bco learn from these" in said and not (tmp_path / "dpo").exists()
    short = ["method.sampling.max_tokens=3", "train.iterations=1"]
    assert run(tmp_path / "spin", model, "--method", "spin", *tune, *short) == 0


def test_a_reference_and_a_dpo_model_of_the_policys_vocabulary(model, data, tmp_path, capsys) -> None:
    """Another model as the reference, the run before as RTO's; one with other tokens is refused."""
    few = [f"data={data}", "train.iterations=1"]
    assert run(tmp_path / "dpo", model, *few, f"reference={model}") == 0
    more = ["--method", "rto", "reward=nothing", "groups=2", "group_size=2", "method.sampling.max_tokens=4"]
    assert run(tmp_path / "rto", model, *few, *more, f"method.dpo_model={tmp_path / 'dpo'}") == 0
    strange, words = tmp_path / "strange", letters("abc")
    llama(len(words)).float().save_pretrained(strange)
    words.save_pretrained(strange)
    capsys.readouterr()
    for option in ([f"reference={strange}"], [*more, f"method.dpo_model={strange}"]):
        assert run(tmp_path / "x", model, *few, *option) == 2 and not (tmp_path / "x").exists()
        assert "it must have the policy's vocabulary" in capsys.readouterr().err
    assert run(tmp_path / "x", model, *few, *more) == 2
    assert "run --method dpo first, and give its folder" in capsys.readouterr().err
    assert run(tmp_path / "x", model, "--method", "tr-dpo", *few, f"reference={model}") == 2
    assert "leave the other model out" in capsys.readouterr().err


def test_mistakes_are_told_in_one_sentence(model, data, tmp_path, capsys, monkeypatch) -> None:
    def refused(*options: str, place: Path = model) -> str:
        assert run(tmp_path / "run", place, *options) == 2
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err

    assert "data is missing: give a file of preferences with data=FILE" in refused()
    assert "there is no file" in refused(f"data={tmp_path / 'none.jsonl'}")
    assert "give a reward with reward=..." in refused("--method", "rloo", f"data={data}")
    assert "there is no folder" in refused(f"data={data}", place=tmp_path / "nothing")
    assert "cannot be read as a causal language model" in refused(f"data={data}", place=tmp_path)
    assert "give more of them" in refused(f"data={data}", "held_out=0")
    broken = tmp_path / "broken.jsonl"
    broken.write_text(data.read_text() + "{\n")
    assert "broken.jsonl, row 25 is no JSON" in refused(f"data={broken}")
    short = tmp_path / "short"
    llama(20).float().save_pretrained(short)
    assert "tokens and the model 20: they do not belong together" in refused(
        f"data={data}", f"tokenizer={model}", place=short
    )
    pairwise = ["--method", "p3o-joint", "reward=short", f"data={data}", "group_size=2", "train.iterations=1"]
    for odd in ("train.micro_batch=3", "train.minibatches=2"):
        assert run(tmp_path / odd, model, *pairwise, odd) != 0
        assert "use an even group_size and train.micro_batch" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'girsanov[llm]'" in refused(f"data={data}")
