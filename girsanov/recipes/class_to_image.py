"""Class-conditional networks (SiT, DiT), tuned to a reward on their classes."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from girsanov.adapters.base import Adapter
from girsanov.errors import GirsanovError
from girsanov.prompts import ClassPrompts
from girsanov.recipes.base import RunConfig
from girsanov.recipes.pipelines import Asked, PipelineRecipe, PipelineRunConfig
from girsanov.settings import Count, settings
from girsanov.types import Cond


@settings
class ClassToImageConfig(PipelineRunConfig):
    """The class recipe's configuration.

    Attributes:
        classes: how many classes are trained on, the first ones; all by default.
        eval_classes: the classes that evaluations draw; eight of the trained ones, evenly spread, by default.
    """

    classes: Count | None = None
    eval_classes: tuple[int, ...] | None = None


class ClassToImage(PipelineRecipe):
    """Tune a class-conditional network to a reward."""

    name: ClassVar[str] = "class-to-image"
    summary: ClassVar[str] = "a class-conditional SiT or DiT; model=FILE.pt,VAE or model=FOLDER"
    config: ClassVar[type[RunConfig]] = ClassToImageConfig

    def asked(self, config: ClassToImageConfig, adapter: Adapter, device: torch.device) -> Asked:
        """The classes."""
        if adapter.classes is None:
            raise GirsanovError(f"{config.model} draws texts, not classes: use girsanov run text-to-image")
        if config.classes is not None and config.classes > adapter.classes:
            raise GirsanovError(f"classes = {config.classes}: {config.model} has {adapter.classes}")
        count = config.classes or adapter.classes
        shown = config.eval_classes or tuple(torch.linspace(0, count - 1, min(8, count)).long().tolist())
        wrong = [c for c in shown if not 0 <= c < adapter.classes]
        if wrong:
            raise GirsanovError(f"eval_classes holds {wrong[0]}: the classes are 0 .. {adapter.classes - 1}")
        source = ClassPrompts(
            num_classes=count,
            groups_per_batch=config.groups,
            group_size=config.group_size,
            null_class=adapter.classes,
            seed=config.train.seed,
        )
        index = torch.arange(len(shown))
        null = Cond({"label": torch.tensor([adapter.classes])}, torch.zeros_like(index))
        cond = Cond({"label": torch.tensor(shown)}, index, null)
        about = f"{count} classes, evaluated on {len(shown)} of them."
        return Asked(source, cond, shown, about, lambda texts: conditions(adapter, texts))


def conditions(adapter: Adapter, texts: Sequence[str]) -> Cond:
    """Conditions of the prompts of judged pictures, which are numbers of classes."""
    assert adapter.classes is not None
    numbers = [int(text) if text.strip().isdecimal() else -1 for text in texts]
    for text, number in zip(texts, numbers, strict=True):
        if not 0 <= number < adapter.classes:
            raise GirsanovError(
                f"the prompt {text!r} is no class: prompts of judged pictures are numbers from 0 to "
                f"{adapter.classes - 1} here"
            )
    null = Cond({"label": torch.tensor([adapter.classes])}, torch.zeros(len(texts), dtype=torch.int64))
    return Cond({"label": torch.tensor(numbers)}, torch.arange(len(texts)), null)
