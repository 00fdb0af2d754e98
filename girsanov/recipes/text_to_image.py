"""Pipelines that draw from texts (pictures, videos, audio), tuned to a reward on a set of prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from girsanov.adapters.base import Adapter
from girsanov.adapters.load import quiet
from girsanov.adapters.pictures import PictureEncoder
from girsanov.adapters.text import PromptEncoder
from girsanov.errors import GirsanovError
from girsanov.prompt_sets import PromptSet, read_prompts
from girsanov.prompts import TextPrompts
from girsanov.recipes.base import RunConfig
from girsanov.recipes.pipeline_preferences import prompts_in
from girsanov.recipes.pipelines import Asked, PipelineRecipe, PipelineRunConfig
from girsanov.settings import Count, settings
from girsanov.starts import START
from girsanov.types import Cond


@settings
class TextToImageConfig(PipelineRunConfig):
    """The text recipe's configuration.

    Attributes:
        prompts: file or data set of training prompts (``girsanov/prompt_sets.py`` says which kinds).
        prompts_column, prompts_split, prompts_limit: which column, which split, the first so many.
        prompts_image: column with the path of a picture: one to edit, one that steers, or, with ``pipeline.strength``,
            one to begin from.
        eval_prompts: file or data set of held-out prompts; the training prompts by default.
        eval_limit: how many prompts evaluations use, the first ones.
        negative: the negative prompt.
        long_prompts: "refuse" a prompt whose end the text encoder would not read, or "cut" it.
    """

    prompts: str | None = None
    prompts_column: str | None = None
    prompts_split: str = "train"
    prompts_limit: Count | None = None
    prompts_image: str | None = None
    eval_prompts: str | None = None
    eval_limit: Count = 8
    negative: str = ""
    long_prompts: Literal["refuse", "cut"] = "refuse"


class TextToImage(PipelineRecipe):
    """Tune a text-conditional pipeline of diffusers to a reward."""

    name: ClassVar[str] = "text-to-image"
    summary: ClassVar[str] = (
        "a pretrained diffusers pipeline; model=FOLDER with prompts=FILE reward=..., or data=FILE of judged pictures"
    )
    config: ClassVar[type[RunConfig]] = TextToImageConfig

    def asked(self, config: TextToImageConfig, adapter: Adapter, device: torch.device) -> Asked:
        """The prompts, encoded."""
        if adapter.classes is not None:
            raise GirsanovError(f"{config.model} draws classes, not texts: use girsanov run class-to-image")
        judged, held = ([], []) if config.data is None else prompts_in(config.data, config.held_out)
        if config.prompts is None and config.data is None:
            raise GirsanovError("prompts is missing: give a file of prompts with prompts=...")
        training = plain(judged or held) if config.prompts is None else self.read(config, config.prompts)
        held_out = training if config.prompts is not None or not held else plain(held)
        held_out = held_out if config.eval_prompts is None else self.read(config, config.eval_prompts)
        shown = min(config.eval_limit, len(held_out))
        encode = PromptEncoder.cached(adapter, device)
        every = list(dict.fromkeys([*training.texts, *held_out.texts[:shown], *judged, *held]))
        with quiet():  # what is cut was asked for
            if config.long_prompts == "refuse":
                for text in (config.negative, *every):
                    adapter.check_length(text)
            encode.prepare([config.negative], negative=True)
            encode.prepare(every)
        source = TextPrompts(
            texts=training.texts,
            encode=encode,
            encode_negative=encode.negative,
            negative=config.negative,
            metadata=training.metadata,
            conditions=pictures(config, adapter, training, len(training), device),
            groups_per_batch=config.groups,
            group_size=config.group_size,
            seed=config.train.seed,
        )
        index, own = torch.arange(shown), pictures(config, adapter, held_out, shown, device)
        null = {k: v.expand(shown, *v.shape[1:]) for k, v in encode.negative([config.negative]).items()}
        cond = Cond({**encode(held_out.texts[:shown]), **own}, index, Cond({**null, **own}, index))
        meta = [{"text": t, **m} for t, m in zip(held_out.texts[:shown], held_out.metadata, strict=False)]
        where = "the same prompts" if held_out is training else "held-out prompts"
        about = f"{len(training)} prompts, evaluated on {shown} of {where}."
        return Asked(source, cond, meta, about, lambda texts: conditions(encode, config.negative, texts))

    def read(self, config: TextToImageConfig, source: str) -> PromptSet:
        """A set of prompts."""
        return read_prompts(source, config.prompts_column, config.prompts_split, config.prompts_limit)


def plain(texts: Sequence[str]) -> PromptSet:
    """Prompts of which nothing else is known."""
    return PromptSet(tuple(texts), tuple({} for _ in texts))


def conditions(encode: PromptEncoder, negative: str, texts: Sequence[str]) -> Cond:
    """Conditions of prompts, one sample each; a prompt that comes twice has one row."""
    row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    index = torch.tensor([row[text] for text in texts])
    return Cond(encode(list(row)), index, Cond(encode.negative([negative]), torch.zeros_like(index)))


def pictures(
    config: TextToImageConfig, adapter: Any, prompts: PromptSet, count: int, device: torch.device
) -> dict[str, Tensor]:
    """The conditions of the pictures that go with the first prompts, if there are any."""
    strength = config.pipeline.strength
    if config.prompts_image is None:
        if strength is not None:
            raise GirsanovError(
                f"pipeline.strength={strength:g} begins from pictures and there are none: name the column of their "
                "paths with prompts_image=..., or leave it out"
            )
        return {}
    if config.data is not None:
        raise GirsanovError("judged pictures are learned from without a picture to edit: leave prompts_image out")
    paths = prompts.column(config.prompts_image)[:count]
    if strength is not None:
        return {START: PictureEncoder(adapter, device)([Path(path).expanduser() for path in paths])}
    if not hasattr(adapter, "image_conditions"):
        begin = "begin from them with pipeline.strength=0.6, or " if "strength" in adapter.options else ""
        raise GirsanovError(f"{type(adapter.pipe).__name__} takes no pictures to edit: {begin}leave prompts_image out")
    found: dict[str, Tensor] = adapter.image_conditions(opened(paths))
    return found


def opened(paths: Sequence[str]) -> list[Any]:
    """Pictures of files, RGB."""
    from PIL import Image, UnidentifiedImageError

    made = []
    for path in paths:
        try:
            with Image.open(Path(path).expanduser()) as picture:
                made.append(picture.convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise GirsanovError(f"{path} cannot be read as a picture: {error}") from None
    return made
