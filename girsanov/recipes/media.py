"""What a pipeline makes, as pictures for reports and as files: images, videos, audio."""

import io
import textwrap
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from girsanov.recipes.base import Samples

LEAST, MOST, GAP, LINE = 144, 320, 8, 13  # pixels: sides of a picture on a sheet, space between, height of a line
SHEET = 672  # width of a sheet
PAPER, INK = (250, 248, 243), (28, 43, 72)
PER_SECOND = 8  # frames of a written video


def is_audio(x: Tensor) -> bool:
    """Whether samples are audio [n, C, L]."""
    return x.ndim == 3


def frames(x: Tensor) -> list[Image.Image]:
    """Images [n, 3, H, W] in [-1, 1], or the middle frames of videos [n, 3, F, H, W], as pictures."""
    x = x[:, :, x.shape[2] // 2] if x.ndim == 5 else x
    scaled = ((x.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in scaled.expand(-1, 3, -1, -1)]


def waveforms(x: Tensor, width: int = MOST, height: int = LEAST) -> list[Image.Image]:
    """The outlines of audio [n, C, L], its channels averaged, as pictures."""
    made = []
    for sound in x.detach().float().cpu().mean(1).numpy():
        picture = Image.new("RGB", (width, height), PAPER)
        pen, middle = ImageDraw.Draw(picture), height / 2
        for column, part in enumerate(np.array_split(sound, width)):
            if len(part):
                low, high = (float(np.clip(v, -1, 1)) * (middle - 2) for v in (part.min(), part.max()))
                pen.line((column, middle - high, column, middle - low + 1), fill=INK)
        made.append(picture)
    return made


def draw(samples: Samples) -> bytes:
    """A sheet of samples with their prompts under them, PNG bytes."""
    pictures = waveforms(samples.x) if is_audio(samples.x) else frames(samples.x)
    pictures = [fitted(p) for p in pictures]
    width, height = pictures[0].size
    captions = [textwrap.wrap(c, max(12, width // 6))[:3] for c in samples.labels] or [[] for _ in pictures]
    text = LINE * max(map(len, captions)) + (GAP if any(captions) else 0)
    columns = max(1, min(len(pictures), SHEET // (width + GAP)))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + text + GAP) + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = GAP + (i % columns) * (width + GAP), GAP + (i // columns) * (height + text + GAP)
        sheet.paste(picture, (left, top))
        for k, line in enumerate(caption):
            pen.text((left, top + height + 3 + LINE * k), latin(line), fill=INK)
    buffer = io.BytesIO()
    sheet.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def latin(text: str) -> str:
    """The text as far as the built-in font has its letters."""
    return text.encode("latin-1", "replace").decode("latin-1")


def fitted(picture: Image.Image) -> Image.Image:
    """Small pictures enlarged by a whole factor without smoothing, large ones reduced."""
    longest = max(picture.size)
    if longest < LEAST:
        zoom = -(-LEAST // longest)
        return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
    if longest > MOST:
        return picture.resize(tuple(max(1, round(side * MOST / longest)) for side in picture.size))  # type: ignore[arg-type]
    return picture


def write(samples: Samples, folder: Path, rate: int = 44100) -> None:
    """One file a sample, ``0007.png``, ``.gif`` or ``.wav``, and ``prompts.txt`` with a line for each."""
    if is_audio(samples.x):
        for i, sound in enumerate(samples.x.detach().float().cpu()):
            write_wave(folder / f"{i:04d}.wav", sound, rate)
    elif samples.x.ndim == 5:
        for i, video in enumerate(samples.x):
            first, *rest = frames(video.transpose(0, 1))
            options: dict[str, Any] = {"save_all": True, "append_images": rest, "duration": 1000 // PER_SECOND}
            first.save(folder / f"{i:04d}.gif", loop=0, **options)
    else:
        for i, picture in enumerate(frames(samples.x)):
            picture.save(folder / f"{i:04d}.png")
    if samples.labels:
        write_lines(folder / "prompts.txt", samples.labels)


def write_wave(path: Path, sound: Tensor, rate: int) -> None:
    """Audio [C, L] in [-1, 1] as 16-bit PCM."""
    data = (sound.clamp(-1, 1) * 32767).round().to(torch.int16).T.contiguous().numpy()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(sound.shape[0])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(data.tobytes())


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Lines of text."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
