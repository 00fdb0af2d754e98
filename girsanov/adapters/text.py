"""Prompt embeddings, computed once and kept on disk.

The text encoders of a pipeline are often larger than the network that is tuned. They are on the accelerator while new
texts are encoded, and on the host from then on. Each text is one file, named by what its embedding depends on:

    CACHE/prompts/FINGERPRINT/SHA256-OF-THE-TEXT.safetensors

The fingerprint covers the family, the encoders' configurations and a sample of every one of their weights, the
tokenisers, and the settings of the encoding.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from girsanov.disk import full_disk
from girsanov.store import cache_folder

Row = dict[str, Tensor]
"""The named conditions of one text, without a batch axis."""

SAMPLED = 16  # numbers of each weight that the fingerprint looks at


class Fingerprinted(Protocol):
    """What says on which networks, tokenisers and settings its results depend."""

    def encoders(self) -> Mapping[str, Any]: ...
    def settings(self) -> Mapping[str, Any]: ...


class Embeds(Fingerprinted, Protocol):
    """What can embed texts: an adapter."""

    def embed(self, texts: Sequence[str], negative: bool, device: torch.device) -> list[Row]: ...


class PromptEncoder:
    """``encode(texts) -> tables``, one row a text, as ``TextPrompts`` takes it.

    Rows of different lengths are padded with zeros to the longest one that was prepared, so that positive and negative
    branch fit into one batch.

    Args:
        source: what embeds.
        device: where texts are encoded.
        folder: the cache; None keeps embeddings in memory alone.
        batch: texts encoded at a time.
    """

    def __init__(
        self, source: Embeds, device: torch.device | str = "cpu", folder: Path | None = None, batch: int = 16
    ) -> None:
        self.source, self.device, self.batch = source, torch.device(device), batch
        self.folder = None if folder is None else folder / "prompts" / fingerprint(source)
        self.rows: dict[tuple[str, bool], Row] = {}

    @classmethod
    def cached(cls, source: Embeds, device: torch.device | str = "cpu") -> "PromptEncoder":
        """With the package's cache folder (the environment's GIRSANOV_CACHE)."""
        return cls(source, device, cache_folder())

    def prepare(self, texts: Sequence[str], negative: bool = False) -> None:
        """Encodes what is neither in memory nor on disk; the text encoders are back on the host afterwards."""
        wanted = [t for t in dict.fromkeys(texts) if (t, negative) not in self.rows]
        missing = []
        for text in wanted:
            found = self._read(text, negative)
            if found is None:
                missing.append(text)
            else:
                self.rows[text, negative] = found
        if not missing:
            return
        modules = [m for m in self.source.encoders().values() if isinstance(m, nn.Module)]
        for module in modules:
            module.to(self.device)
        with torch.no_grad():
            for start in range(0, len(missing), self.batch):
                part = missing[start : start + self.batch]
                for text, row in zip(part, self.source.embed(part, negative, self.device), strict=True):
                    self.rows[text, negative] = {k: v.detach().to("cpu", copy=True) for k, v in row.items()}
                    self._write(text, negative)
        if self.device.type != "cpu":
            for module in modules:
                module.to("cpu")

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The tables of positive prompts, [R, ...]."""
        return self._tables(texts, False)

    def negative(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The tables of negative prompts, [R, ...]."""
        return self._tables(texts, True)

    def _tables(self, texts: Sequence[str], negative: bool) -> dict[str, Tensor]:
        self.prepare(texts, negative)
        rows = [self.rows[text, negative] for text in texts]
        lengths = {k: max(r[k].shape[0] if r[k].ndim else 0 for r in self.rows.values()) for k in rows[0]}
        return {k: torch.stack([padded(row[k], lengths[k]) for row in rows]) for k in rows[0]}

    def _path(self, text: str, negative: bool) -> Path | None:
        name = hashlib.sha256(f"{negative} {text}".encode()).hexdigest()[:40]
        return None if self.folder is None else self.folder / f"{name}.safetensors"

    def _read(self, text: str, negative: bool) -> Row | None:
        path = self._path(text, negative)
        if path is None or not path.is_file():
            return None
        try:
            return load_file(path)
        except Exception:  # a file cut short by a full disk or a kill is made anew
            return None

    def _write(self, text: str, negative: bool) -> None:
        path = self._path(text, negative)
        if path is None:
            return
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        with full_disk("the cache of prompt embeddings"):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({k: v.contiguous() for k, v in self.rows[text, negative].items()}, draft)
            os.replace(draft, path)


def padded(row: Tensor, length: int) -> Tensor:
    """A row [L, ...] with zeros behind it, [length, ...]; a number stays one."""
    if row.ndim == 0 or len(row) == length:
        return row
    return torch.cat([row, row.new_zeros(length - len(row), *row.shape[1:])])


def fingerprint(source: Fingerprinted) -> str:
    """What embeddings (or latents) depend on, as 16 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(dict(source.settings()), sort_keys=True, default=str).encode())
    for name, part in sorted(source.encoders().items()):
        digest.update(name.encode())
        if isinstance(part, nn.Module):
            digest.update(str(getattr(part, "config", "")).encode())
            for key, w in part.state_dict().items():
                flat = w.detach().reshape(-1)
                some = flat[spaced(len(flat), min(SAMPLED, len(flat))).to(flat.device)]
                digest.update(f"{key} {list(w.shape)} {w.dtype} {some.float().tolist()}".encode())
        else:  # a tokeniser
            digest.update(f"{type(part).__name__} {part(PROBE).input_ids}".encode())
    return digest.hexdigest()[:16]


def spaced(length: int, count: int) -> Tensor:
    """``count`` of ``length`` indices, from the first to the last; in integers, as float32 ends at 2^24."""
    return torch.arange(count) * (length - 1) // max(1, count - 1)


PROBE = "A quick brown fox, 12 lazy dogs & the café's neon sign."
