"""What does not stay on the accelerator: text encoders, which are asked once a text, and the autoencoder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from girsanov.adapters.base import PipelineConfig
from girsanov.adapters.latents import Decoder
from girsanov.adapters.load import load_pipeline
from girsanov.adapters.text import PromptEncoder, fingerprint
from tests.pipelines import LINES, folder_of

pytest.importorskip("diffusers")
ELSEWHERE = torch.device("meta")  # has no memory: what is there cannot be read back, so nothing comes back by accident


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.getbasetemp()


def counted(adapter: Any) -> list[int]:
    """How many texts each call of the pipeline's text encoder has seen."""
    calls: list[int] = []
    adapter.pipe.text_encoder.register_forward_hook(lambda m, args, out: calls.append(len(args[0])))
    return calls


def test_a_second_run_asks_no_text_encoder(root: Path, tmp_path: Path) -> None:
    """SD1.5, loaded anew: the same embeddings to the bit, from disk; another encoder is asked again."""
    folder = folder_of("sd15", root)
    first, again, other = (load_pipeline(folder) for _ in range(3))
    calls = [counted(a) for a in (first, again, other)]
    made = PromptEncoder(first, folder=tmp_path)(LINES[:3])["text"]
    assert calls[0] == [3]
    assert torch.equal(PromptEncoder(again, folder=tmp_path)(LINES[:3])["text"], made) and calls[1] == []
    with torch.no_grad():
        next(other.pipe.text_encoder.parameters()).add_(1e-3)
    assert fingerprint(first) == fingerprint(again) != fingerprint(other)
    found = PromptEncoder(other, folder=tmp_path)(LINES[:3])["text"]
    assert calls[2] == [3] and not torch.equal(found, made)


@pytest.mark.parametrize("name", ["sd15", "controlnet"])
def test_what_runs_at_every_step_is_moved_and_nothing_else(name: str, root: Path) -> None:
    """The network (and a ControlNet) go to the device; text encoder and autoencoder stay on the host."""
    adapter = load_pipeline(folder_of(name, root), PipelineConfig(height=16, width=16))
    adapter.to(ELSEWHERE)
    moved = {k for k, m in adapter.pipe.components.items() if isinstance(m, nn.Module) and at(m) == ELSEWHERE}
    assert moved == {adapter.component, *adapter.helpers}


def at(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


class Travelling(nn.Linear):
    """A layer that notes where it is sent, and stays."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.sent: list[str] = []

    def to(self, device: Any) -> "Travelling":  # type: ignore[override]
        self.sent.append(torch.device(device).type)
        return self


class Away:
    """A source of embeddings whose encoder notes where it is sent; the embeddings stay on the host."""

    def __init__(self) -> None:
        self.module = Travelling()

    def encoders(self) -> dict[str, Any]:
        return {"text_encoder": self.module}

    def settings(self) -> dict[str, Any]:
        return {}

    def embed(self, texts: Any, negative: bool, device: torch.device) -> list[dict[str, torch.Tensor]]:
        assert device == ELSEWHERE and self.module.sent == [ELSEWHERE.type], "asked before it was moved"
        return [{"text": torch.ones(1, 2)} for _ in texts]


def test_text_encoders_leave_the_accelerator_after_use() -> None:
    """There while texts are encoded, back on the host then, and not sent at all for texts that are known."""
    source = Away()
    encode = PromptEncoder(source, ELSEWHERE)
    encode(["a", "b"])
    assert source.module.sent == [ELSEWHERE.type, "cpu"]
    encode(["b"])
    assert source.module.sent == [ELSEWHERE.type, "cpu"]


def test_the_decoder_leaves_the_accelerator_unless_a_gradient_needs_it() -> None:
    """It follows the samples, and goes back after a call without a graph; with one it stays for the backward pass."""
    layer = Travelling()
    decode = Decoder(layer, lambda x: x, chunk=2)
    with torch.no_grad():
        decode(torch.zeros(3, 2, device=ELSEWHERE))
    assert layer.sent == [ELSEWHERE.type, "cpu"]
    decode(torch.zeros(3, 2, device=ELSEWHERE, requires_grad=True))
    assert layer.sent == [ELSEWHERE.type, "cpu", ELSEWHERE.type]
    assert not any(p.requires_grad for p in layer.parameters())
