"""Prompt embeddings: each text encoded once, kept on disk under a fingerprint of all that they depend on, padded."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from girsanov.adapters.text import PromptEncoder, fingerprint, spaced


class Letters:
    """Embeds a text as one row a letter; the negative branch has the opposite sign."""

    def __init__(self, seed: int = 0, tokens: int = 8) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.table = nn.Embedding(256, 3)
        self.tokens, self.calls, self.devices = tokens, list[list[str]](), list[str]()

    def encoders(self) -> dict[str, Any]:
        return {"text_encoder": self.table, "tokenizer": lambda text: SimpleNamespace(input_ids=list(text.encode()))}

    def settings(self) -> dict[str, Any]:
        return {"tokens": self.tokens}

    def embed(self, texts: Sequence[str], negative: bool, device: torch.device) -> list[dict[str, torch.Tensor]]:
        self.calls.append(list(texts))
        rows = [self.table(torch.tensor(list(t.encode()), dtype=torch.int64)) for t in texts]
        return [{"text": -r if negative else r, "size": torch.tensor(float(len(r)))} for r in rows]


def test_each_text_is_encoded_once_and_padded(tmp_path: Path) -> None:
    source = Letters()
    encode = PromptEncoder(source, folder=tmp_path, batch=2)
    encode.prepare(["ab", "abcd", "ab", "x"])
    assert source.calls == [["ab", "abcd"], ["x"]]
    tables = encode(["x", "ab"])
    assert source.calls == [["ab", "abcd"], ["x"]]
    assert tables["text"].shape == (2, 4, 3) and tables["size"].tolist() == [1.0, 2.0]
    assert torch.equal(tables["text"][1, :2], source.table(torch.tensor([97, 98])).detach())
    assert not tables["text"][1, 2:].any() and not tables["text"].requires_grad
    assert torch.equal(encode.negative(["ab"])["text"][0], -tables["text"][1])
    assert source.calls[-1] == ["ab"]


def test_another_process_finds_them_on_disk(tmp_path: Path) -> None:
    first = PromptEncoder(Letters(), folder=tmp_path)
    expected = first(["ab", "c"])
    source = Letters()
    again = PromptEncoder(source, folder=tmp_path)
    assert all(torch.equal(v, expected[k]) for k, v in again(["ab", "c"]).items()) and source.calls == []


def test_a_damaged_entry_is_made_anew(tmp_path: Path) -> None:
    first = PromptEncoder(Letters(), folder=tmp_path)
    expected = first(["ab"])["text"]
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    source = Letters()
    assert torch.equal(PromptEncoder(source, folder=tmp_path)(["ab"])["text"], expected) and source.calls == [["ab"]]
    assert not list(tmp_path.rglob(".*"))


def test_the_fingerprint_sees_weights_settings_and_tokeniser() -> None:
    same = fingerprint(Letters())
    assert same == fingerprint(Letters())
    other = Letters()
    with torch.no_grad():
        other.table.weight[0, 0] += 1e-3
    shouting = Letters()
    shouting.encoders = lambda: {  # type: ignore[method-assign]
        "text_encoder": shouting.table,
        "tokenizer": lambda text: SimpleNamespace(input_ids=list(text.upper().encode())),
    }
    assert len({same, fingerprint(other), fingerprint(Letters(tokens=9)), fingerprint(shouting)}) == 4


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    PromptEncoder(Letters())(["ab"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [49408 * 768, 2**24 + 1, 2**24, 151936 * 2560, 2**33 + 7])
def test_the_fingerprint_reads_weights_of_real_size(length: int) -> None:
    """The token table of CLIP ViT-L has 37,945,344 numbers: in float32 the last index would lie behind its end."""
    index = spaced(length, 16)
    assert index[0] == 0 and index[-1] == length - 1 and len(index.unique()) == 16
    letters = Letters()
    letters.table.register_buffer("large", torch.ones(1).expand(length))  # no memory
    assert fingerprint(letters) != fingerprint(Letters())
