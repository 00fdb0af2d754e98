"""Published hyper-parameters of methods on real models, from the files of this folder.

A file is a recipe: method -> source -> settings (dotted, as on the command line), with "*" for every method. A setting
stands under where it was read (``sources.yaml``), and under ``ours`` where nothing was found; ``docs/presets.md`` shows
all of it. A batch is a whole one, over the source's processes: ``groups`` prompts of ``group_size`` samples, in
``minibatches`` updates. What an accelerator holds at a time (``train.micro_batch``) is another matter, and ours.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from girsanov.config import merge, nest

HERE = Path(__file__).parent
EVERY = "*"
"""Stands for every method of a recipe."""

Published = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Method -> source -> dotted setting -> value."""


@lru_cache
def published(recipe: str) -> Published:
    """The file of a recipe; empty where it has none."""
    path = HERE / f"{recipe}.yaml"
    if not path.is_file():
        return {}
    found: Published = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


@lru_cache
def sources() -> Mapping[str, str]:
    """Source -> where it is: a repository's file, or a paper's section."""
    found: Mapping[str, str] = yaml.safe_load((HERE / "sources.yaml").read_text(encoding="utf-8"))
    return found


def settings_of(recipe: str, method: str) -> dict[str, Any]:
    """What a recipe sets for a method, nested: its settings of every method, under the method's own."""
    made: dict[str, Any] = {}
    for name in (EVERY, method):
        for part in published(recipe).get(name, {}).values():
            for key, value in part.items():
                made = merge(made, nest(key, value))
    return made
