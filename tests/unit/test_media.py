"""Sheets and files of images, videos and sounds."""

import io
import wave
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from girsanov.recipes.base import Samples
from girsanov.recipes.media import GAP, LEAST, PAPER, SHEET, draw, write


def opened(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"))


def test_a_sheet_shows_every_picture_in_its_place() -> None:
    """Five colours of 8 x 8 pixels: each where its turn is, the background where none is."""
    colours = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [-1, 1, 1]])
    x = colours[:, :, None, None].expand(5, 3, 8, 8)
    sheet = opened(draw(Samples(x, tuple("abcde"))))
    columns = SHEET // (LEAST + GAP)
    assert columns == 4 and sheet.shape[1] == columns * (LEAST + GAP) + GAP
    pitch = (sheet.shape[0] - GAP) // 2
    for i, colour in enumerate(colours):
        top, left = GAP + (i // columns) * pitch, GAP + (i % columns) * (LEAST + GAP)
        inside = sheet[top : top + LEAST, left : left + LEAST]
        assert (inside == ((colour.numpy() + 1) * 127.5).round()).all()
    assert (sheet[GAP + pitch : GAP + pitch + LEAST, 2 * (LEAST + GAP) :] == PAPER).all()


def test_files_hold_what_was_drawn(tmp_path: Path) -> None:
    x = torch.linspace(-1, 1, 2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    write(Samples(x, ("a", "b")), tmp_path)
    with Image.open(tmp_path / "0001.png") as picture:
        found = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 127.5 - 1
    assert (found - x[1]).abs().max() <= 1 / 127.5
    assert (tmp_path / "prompts.txt").read_text() == "a\nb\n"


def test_a_video_has_its_frames_and_a_sound_its_samples(tmp_path: Path) -> None:
    level = torch.linspace(-1, 1, 5)
    video = level[None, None, :, None, None].expand(1, 3, 5, 16, 16)
    write(Samples(video), tmp_path)
    with Image.open(tmp_path / "0000.gif") as picture:
        assert picture.n_frames == 5
    assert abs(int(opened(draw(Samples(video)))[LEAST // 2, LEAST // 2, 0]) - 128) <= 1  # the middle frame
    sound = torch.stack([torch.linspace(-1, 1, 101), torch.linspace(1, -1, 101)])[None]
    write(Samples(sound), tmp_path, rate=100)
    with wave.open(str(tmp_path / "0000.wav")) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, 100, 101)
        data = np.frombuffer(file.readframes(101), dtype="<i2").reshape(-1, 2)
    assert np.allclose(data.T / 32767, sound[0], atol=1e-4)
    assert opened(draw(Samples(sound, ("x",)))).min() < 100
