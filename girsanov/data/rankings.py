"""What is learned from a row: its items as rankings, and whether its prompt is held out."""

import hashlib
from collections.abc import Iterable

from girsanov.data.records import Item, Preference

HELD_OUT = ("test", "validation", "valid", "dev", "eval")
"""Splits whose rows are never trained on."""


def in_share(text: str, share: float) -> bool:
    """Whether a prompt belongs to a share of all prompts: by its digest, so the same prompt always does."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < share * 2.0**64


def is_held_out(split: str, text: str, share: float) -> bool:
    """Whether a row is to test on: by its split, else by the digest of its prompt."""
    return split in HELD_OUT or (split == "train" and in_share(text, share))


def rankings(p: Preference) -> list[list[Item]]:
    """The row's items as one strict ranking, or as pairs."""
    if p.ranked:
        key = [-float(i.rank or 0) for i in p.items]
    elif all(i.score is not None for i in p.items):
        key = [float(i.score or 0.0) for i in p.items]
    else:
        return []
    if len(p.items) > 1 and len(set(key)) == len(key):
        order = sorted(range(len(key)), key=lambda j: -key[j])
        return [[p.items[j] for j in order]]
    return [[a, b] for a, b in p.pairs()]


def told(left_out: Iterable[str], shown: int = 5) -> list[str]:
    """Lines about rows that were left out."""
    sentences = list(left_out)
    more = [f"... and {len(sentences) - shown} more"] if len(sentences) > shown else []
    return [f"left out: {s}" for s in sentences[:shown]] + more
