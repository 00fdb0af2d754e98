"""Pictures of a user as states of a pipeline, encoded once and kept on disk.

A picture is turned upright, laid on white where it is transparent, scaled to cover the size that the pipeline draws and
cut to it around its centre; its state is the mean of the autoencoder's law, so that it is the same in every epoch. Each
picture is one file, named by what is in it:

    CACHE/latents/FINGERPRINT/SHA256-OF-THE-PICTURE.safetensors

The fingerprint covers the family, the shape of the state, and the autoencoder's configuration and weights. No more
pictures are in memory than are encoded at a time, and no more states than a batch holds.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from girsanov.adapters.base import Adapter
from girsanov.adapters.text import fingerprint
from girsanov.disk import full_disk
from girsanov.errors import GirsanovError
from girsanov.store import cache_folder

AT_ONCE = 32  # pictures in memory, and per trip of the autoencoder to the accelerator


class PictureEncoder:
    """``encode(paths) -> states [N, *D]`` on the host.

    Args:
        adapter: the pipeline.
        device: where pictures are encoded.
        folder: the cache, the package's (the environment's GIRSANOV_CACHE) by default.
    """

    def __init__(self, adapter: Adapter, device: torch.device | str = "cpu", folder: Path | None = None) -> None:
        self.adapter, self.device = adapter, torch.device(device)
        self.folder = (folder or cache_folder()) / "latents" / fingerprint(self)
        self.names: dict[Path, str] = {}
        self._side: tuple[int, int] | None = None

    def encoders(self) -> Mapping[str, Any]:
        """What the states depend on, for the fingerprint."""
        return {"vae": self.adapter.pipe.vae}

    def settings(self) -> Mapping[str, Any]:
        """What they depend on besides, for the fingerprint."""
        return {"family": type(self.adapter).__name__, "shape": list(self.adapter.shape)}

    def prepare(self, paths: Sequence[Path]) -> dict[Path, str]:
        """Encodes what is not on disk yet.

        Returns:
            What is wrong with each picture that cannot be read.
        """
        missing, bad = dict[str, Path](), dict[str, str]()
        for path in dict.fromkeys(paths):
            if (name := self._name(path)) and not self._place(name).is_file():
                missing.setdefault(name, path)
        some = list(missing.items())
        for start in range(0, len(some), AT_ONCE):
            self._encode(dict(some[start : start + AT_ONCE]), bad)
        wrong = {path: f"there is no picture {path}" for path in paths if not self._name(path)}
        return wrong | {p: f"{p} is no readable picture ({bad[n]})" for p in paths if (n := self._name(p)) in bad}

    def __call__(self, paths: Sequence[Path]) -> Tensor:
        """The states, float32. Raises GirsanovError at a picture that cannot be read."""
        found = []
        for path in paths:
            state = self._read(path)
            if state is None:
                if wrong := self.prepare([path]):
                    raise GirsanovError(wrong[path])
                state = load_file(self._place(self._name(path)))["state"]
            found.append(state)
        return torch.stack(found)

    def _name(self, path: Path) -> str:
        """The digest of a picture's bytes, read once; empty where there is no file."""
        if path not in self.names:
            try:
                self.names[path] = hashlib.sha256(path.read_bytes()).hexdigest()[:40]
            except OSError:
                return ""
        return self.names[path]

    def _place(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _read(self, path: Path) -> Tensor | None:
        """A state on disk; one that is damaged (by a full disk or a kill) is taken away, to be made anew."""
        place = self._place(self._name(path))
        if not place.is_file():
            return None
        try:
            return load_file(place)["state"]
        except (OSError, KeyError, SafetensorError):
            place.unlink(missing_ok=True)
            return None

    def _encode(self, pictures: Mapping[str, Path], bad: dict[str, str]) -> None:
        """Encodes and writes pictures by digest; notes what is wrong with those that cannot be read."""
        pixels = dict[str, Tensor]()
        for name, path in pictures.items():
            try:
                pixels[name] = read_picture(path, self.side)
            except GirsanovError as error:
                bad[name] = str(error)
        if not pixels:
            return
        with torch.no_grad():
            states = self.adapter.encoder()(torch.stack(list(pixels.values())).to(self.device)).cpu()
        if states.shape[1:] != self.adapter.shape:
            raise GirsanovError(
                f"pictures became states of shape {list(states.shape[1:])} and the network takes "
                f"{list(self.adapter.shape)}: to_latents of {type(self.adapter).__name__} is not the inverse of to_data"
            )
        for name, state in zip(pixels, states, strict=True):
            place = self._place(name)
            draft = place.with_name(f".{place.name}.{os.getpid()}")
            with full_disk("the cache of latents"):
                place.parent.mkdir(parents=True, exist_ok=True)
                save_file({"state": state.contiguous()}, draft)
                os.replace(draft, place)

    @property
    def side(self) -> tuple[int, int]:
        """Height and width of what the pipeline draws: those of one decoded state."""
        if self._side is None:
            with torch.no_grad():
                drawn = self.adapter.decoder()(torch.zeros(1, *self.adapter.shape, device=self.device))
            if drawn.ndim != 4 or drawn.shape[1] != 3:
                raise GirsanovError(f"{type(self.adapter.pipe).__name__} draws no pictures, so it learns from none")
            self._side = (drawn.shape[2], drawn.shape[3])
        return self._side


def read_picture(path: Path, side: tuple[int, int]) -> Tensor:
    """A picture file as [3, height, width] in [-1, 1]. Raises GirsanovError with what is wrong if it cannot be read."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    height, width = side
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
    except (OSError, SyntaxError, ValueError) as error:
        what = "of no known format" if isinstance(error, UnidentifiedImageError) else str(error).splitlines()[0]
        raise GirsanovError(what) from None
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1
