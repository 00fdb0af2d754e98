"""What a remote scorer and its server say to each other: JSON with base64 inside; nothing that could run code.

A request holds the samples, either ``{"shape", "data"}`` (little-endian float32) or ``{"png": [...]}`` (8 bits a
channel, images in [-1, 1] only), the prompts' metadata, and the integer conditions of each sample. The answer is
``{"scores": [...]}`` with null for a score that is not finite, or ``{"error": sentence}``.
"""

import base64
import binascii
import io
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.rewards.jpeg import to_bytes
from girsanov.types import Cond, Prompts

TOKEN_VARIABLE = "GIRSANOV_REWARD_TOKEN"  # so that a token never stands on a command line

Encoding = Callable[[Tensor], dict[str, Any]]
"""Samples [B, *D] to a part of the request."""


def floats(x: Tensor) -> dict[str, Any]:
    """The samples as they are, in float32."""
    data = x.detach().cpu().float().contiguous().numpy().astype("<f4", copy=False).tobytes()
    return {"shape": list(x.shape), "data": base64.b64encode(data).decode()}


def png(x: Tensor) -> dict[str, Any]:
    """Images [B, 1 or 3, H, W] in [-1, 1] as PNG files: smaller, rounded to 8 bits a channel."""
    return {"png": [base64.b64encode(png_file(image)).decode() for image in to_bytes(x).numpy()]}


def png_file(image: np.ndarray) -> bytes:
    """The PNG file of an image, uint8 [H, W, 1 or 3]."""
    file = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(file, "PNG")
    return file.getvalue()


def request(x: Tensor, prompts: Prompts, encode: Encoding) -> bytes:
    """The body of a request. Raises GirsanovError if the metadata is not JSON."""
    cond = prompts.cond
    whole = {k: cond[k].tolist() for k, v in cond.tables.items() if v.ndim == 1 and not v.is_floating_point()}
    body = {**encode(x), "meta": list(prompts.meta), "conditions": whole}
    try:
        return json.dumps(body).encode()
    except TypeError as error:
        raise GirsanovError(
            f"the prompts' metadata cannot travel to a reward server ({error}): keep it to numbers, text, "
            "lists and mappings"
        ) from error


def read_request(body: bytes, max_bytes: int) -> tuple[Tensor, Prompts]:
    """The samples and prompts of a request. Raises GirsanovError with what is wrong with it."""
    try:
        asked = json.loads(body)
        x = _read_png(asked["png"], max_bytes) if "png" in asked else _read_floats(asked, max_bytes)
        n = torch.arange(len(x))
        meta, conditions = tuple(asked.get("meta", ())), asked.get("conditions", {})
        tables = {str(k): torch.tensor(v, dtype=torch.int64) for k, v in conditions.items()}
    except GirsanovError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OSError, binascii.Error) as error:
        raise GirsanovError(f"the request cannot be read: {type(error).__name__}: {error}") from error
    if (meta and len(meta) != len(x)) or any(v.shape != (len(x),) for v in tables.values()):
        raise GirsanovError(f"the request has {len(x)} samples and another number of prompts")
    return x, Prompts(Cond(tables, n), n, n, meta)


def _read_floats(asked: Mapping[str, Any], max_bytes: int) -> Tensor:
    shape = [int(size) for size in asked["shape"]]
    if len(shape) < 1 or min(shape) < 0 or 4 * math.prod(shape) > max_bytes:
        raise GirsanovError(f"the request's samples of shape {shape} exceed {max_bytes} bytes: ask for fewer at a time")
    data = np.frombuffer(base64.b64decode(asked["data"], validate=True), "<f4")
    return torch.from_numpy(data.astype(np.float32)).reshape(shape)


def _read_png(files: list[str], max_bytes: int) -> Tensor:
    images = []
    for text in files:
        image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",))
        # the size is known before a pixel is decoded
        if image.mode not in ("L", "RGB") or 12 * len(files) * image.width * image.height > max_bytes:
            raise GirsanovError(
                f"the request's images exceed {max_bytes} bytes or are not grey or RGB: ask for fewer at a time"
            )
        images.append(np.atleast_3d(np.asarray(image)))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def answer(scores: Tensor) -> bytes:
    """The body of an answer."""
    return json.dumps({"scores": [s if math.isfinite(s) else None for s in scores.tolist()]}).encode()


def read_answer(body: bytes) -> list[float]:
    """The scores of an answer, NaN where there is none. Raises ValueError if it is no answer."""
    found = json.loads(body)
    if not isinstance(found, dict) or not isinstance(found.get("scores"), list):
        raise ValueError("no scores")
    return [math.nan if s is None else float(s) for s in found["scores"]]
