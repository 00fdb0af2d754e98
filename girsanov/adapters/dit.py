"""DiT: a class-conditional transformer on latents; eps from a table, the learned variance left unread."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from girsanov.adapters.base import Adapter, PipelineConfig, required
from girsanov.adapters.text import Row
from girsanov.errors import GirsanovError
from girsanov.types import Cond


class DiT(Adapter):
    """``DiTPipeline``. Condition: ``label`` [R]; the null class is ``classes``."""

    pipelines: ClassVar[tuple[str, ...]] = ("DiTPipeline",)
    options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, pipe: Any, config: PipelineConfig | None = None) -> None:
        super().__init__(pipe, config)
        self.classes = int(pipe.transformer.config.num_embeds_ada_norm)

    @property
    def shape(self) -> tuple[int, ...]:
        """[4, H / 8, W / 8]."""
        config = self.pipe.transformer.config
        return config.in_channels, config.sample_size, config.sample_size

    def predict(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """eps [B, 4, H / 8, W / 8]; t is the table's index."""
        label = required(cond)["label"]
        p: Tensor = self.network(x.to(self.dtype), timestep=t, class_labels=label, return_dict=False)[0]
        return p[:, : x.shape[1]]

    def embed(self, texts: Sequence[str], negative: bool, device: torch.device) -> list[Row]:
        """A class has no embedding of its own: the network holds them."""
        raise GirsanovError("DiT draws classes, not texts: use ClassPrompts")
