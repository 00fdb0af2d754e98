"""Too little memory while a run is put together: one sentence that says what to lower, and no folder left behind.

The error is torch's own, raised in the place of the real call: a network moved to its device, weights that are read.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from girsanov.building import lower, ran_out
from girsanov.cli import main
from girsanov.recipes import get_recipe
from tests.language_models import chat, llama
from tests.pipelines import LINES, folder_of

pytest.importorskip("peft")
pytest.importorskip("diffusers")

SMALL = ["steps=2", "samples=2", "kl_samples=0", "pipeline.height=16", "pipeline.width=16", "--device", "cpu"]
NO_ROOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
HOST = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to ..."
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIRSANOV_CACHE", str(tmp_path / "cache"))
    (tmp_path / "p.txt").write_text("\n".join(LINES[:4]) + "\n")
    return tmp_path


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(folder_of("sd15", tmp_path_factory.getbasetemp()))


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> str:
    place, tokenizer = tmp_path_factory.mktemp("model"), chat()
    llama(len(tokenizer)).float().save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(place)


def crowded(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
    """Networks of a class cannot be moved."""
    move = nn.Module.to

    def to(self: nn.Module, *args: Any, **more: Any) -> nn.Module:
        if type(self).__name__ == name:
            raise error
        return move(self, *args, **more)

    monkeypatch.setattr(nn.Module, "to", to)


def refused(capsys: Any, *command: str) -> str:
    """What a command says that ends with 2 and leaves no folder."""
    capsys.readouterr()
    assert main(["run", *command, "--out", "run"]) == 2
    error: str = capsys.readouterr().err.strip().splitlines()[-1]
    assert not Path("run").exists()
    return error


@pytest.mark.parametrize("error", [NO_ROOM, HOST], ids=["device", "host"])
def test_a_network_that_does_not_fit_its_device(
    error: Exception, pipeline: str, folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowded(monkeypatch, "Denoiser", error)
    command = ("sd15", "--model", pipeline, "prompts=p.txt", "precision=fp32", *SMALL)
    said = refused(capsys, *command)
    assert said.startswith("error: out of memory while the run was put together on cpu, before any training: load the")
    assert "precision=bf16" in said and "shard=true" in said and "lora=16" not in said
    assert main(["run", *command, "--dry-run"]) == 2
    told = " ".join(capsys.readouterr().out.split())
    assert "FAIL parts out of memory while the run was put together" in told


def test_adapters_that_do_not_fit(pipeline: str, folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader of weights that takes errors for a wrong file lets this one through."""
    import diffusers

    def load(*_: Any, **__: Any) -> None:
        raise NO_ROOM

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "load_lora_weights", load)
    assert "out of memory while" in refused(
        capsys, "sd15", "--model", pipeline, "prompts=p.txt", "lora_from=there", *SMALL
    )
    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_pretrained", load)
    assert "out of memory while" in refused(capsys, "sd15", "--model", pipeline, "prompts=p.txt", *SMALL)


@pytest.mark.parametrize("where", ["read", "moved"])
def test_a_language_model_that_does_not_fit(
    where: str, language: str, folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    def read(*_: Any, **__: Any) -> None:
        raise MemoryError

    if where == "read":
        monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", read)
    else:
        crowded(monkeypatch, "LanguageNet", NO_ROOM)
    (folder / "mine.py").write_text("def short(prompts, completions):\n    return [-len(c) for c in completions]\n")
    said = refused(
        capsys, "language", "--method", "grpo", f"model={language}", "prompts=p.txt", "reward=mine.py:short",
        "lora=null", "train.ema=0.9", "held_out=0.5", "--device", "cpu",
    )  # fmt: skip
    assert "train adapters instead of all weights (lora=16), leave train.ema out, split the network" in said


def test_what_is_no_shortage_stays_what_it_was(folder: Path) -> None:
    assert not any(map(ran_out, (RuntimeError("size mismatch"), ValueError("out of memory"), KeyError("weight"))))
    assert ran_out(OSError("[Errno 12] Cannot allocate memory"))
    recipe = get_recipe("digits")
    assert not any("shard" in line for line in lower(recipe, recipe.config(shard=True), torch.device("cpu")))
    assert any("end what else" in line for line in lower(recipe, recipe.config(), torch.device("cuda")))
