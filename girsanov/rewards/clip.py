r"""Scores by CLIP: how well an image and a text agree.

.. math:: c(x, y) = \Big\langle \frac{f(x)}{|f(x)|}, \frac{g(y)}{|g(y)|} \Big\rangle, \qquad
   r_{CLIP} = w\, c, \qquad r_{Pick} = e^{\tau} c,

with f and g the towers for images and texts and tau the model's trained log-temperature. CLIPScore clamps c at 0; that
is left out here, since it only removes a gradient. Differentiable in x.

References: Hessel et al. 2021, arXiv:2104.08718 (CLIPScore: w = 2.5 and the prefix "A photo depicts"; w = 100 is usual
in reports); Kirstain et al. 2023, arXiv:2305.01569 (PickScore).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from girsanov.rewards.base import Reward
from girsanov.rewards.once import Once
from girsanov.rewards.pixels import Fit, pixels, texts
from girsanov.rewards.pretrained import check_vocabulary, pretrained
from girsanov.types import Prompts


class Towers:
    """The two towers of a CLIP model, features of length one.

    Args:
        model: a ``transformers.CLIPModel``.
        tokenizer: its tokenizer.
        fit: how images become squares.
    """

    def __init__(self, model: Any, tokenizer: Any, fit: Fit = "crop") -> None:
        self.model, self.tokenizer, self.fit = model, tokenizer, fit
        self.size = int(model.config.vision_config.image_size)
        self.context = int(model.config.text_config.max_position_embeddings)

    @classmethod
    def load(cls, model: str, processor: str | None = None) -> "Towers":
        """From a folder or a name; the tokenizer from another one where that is given."""
        towers, place = pretrained("CLIPModel", model), processor or model
        tokenizer = pretrained("CLIPTokenizer", place)
        check_vocabulary(tokenizer, int(towers.config.text_config.vocab_size), place)
        return cls(towers, tokenizer)

    def to(self, device: torch.device | str) -> None:
        """Moves them."""
        self.model.to(device)

    def images(self, x: Tensor) -> Tensor:
        """Features [B, F] of images [B, 1 or 3, H, W] in [-1, 1]; carries a gradient."""
        model = self.model.to(x.device)
        values = pixels(x, self.size, self.fit).to(model.dtype)
        pooled = model.vision_model(pixel_values=values).pooler_output
        return F.normalize(model.visual_projection(pooled), dim=-1)

    def texts(self, words: list[str]) -> Tensor:
        """Features [B, F] of texts, each distinct one computed once; what exceeds the context is cut off."""
        distinct = list(dict.fromkeys(words))
        rows = {word: i for i, word in enumerate(distinct)}
        read = self.tokenizer(distinct, padding=True, truncation=True, max_length=self.context, return_tensors="pt").to(
            self.model.device
        )
        with torch.no_grad():
            pooled = self.model.text_model(
                input_ids=read["input_ids"], attention_mask=read["attention_mask"]
            ).pooler_output
            features = F.normalize(self.model.text_projection(pooled), dim=-1)
        return features[[rows[word] for word in words]]

    def agreement(self, x: Tensor, words: list[str]) -> Tensor:
        """Cosines [B] in the dtype of x."""
        images = self.images(x)
        return (images * self.texts(words)).sum(-1).to(x.dtype)


class CLIPScore(Reward):
    """``scale`` times the cosine between image and prompt.

    Args:
        model: folder or name of a CLIP model of transformers.
        scale: w.
        prefix: put before every prompt.
    """

    name = "clip-score"
    differentiable = True

    def __init__(self, model: str = "openai/clip-vit-large-patch14", scale: float = 100.0, prefix: str = "") -> None:
        self.model, self.scale, self.prefix = str(model), scale, prefix
        self.towers = Once(Towers.load, self.model)

    def prepare(self, device: torch.device | str = "cpu") -> None:
        """Loads the model. Raises GirsanovError if there is none."""
        self.towers().to(device)

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B]. Raises GirsanovError if the prompts are no texts."""
        words = [self.prefix + text for text in texts(prompts.meta, len(x), self.name)]
        return self.scale * self.towers().agreement(x, words)


class PickScore(Reward):
    """The cosine times the trained temperature, of a CLIP model tuned on people's choices; about 20 for good images.

    Args:
        model: folder or name of the model.
        processor: of its tokenizer; the model's own where it is None.
    """

    name = "pick-score"
    differentiable = True

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str | None = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    ) -> None:
        self.model, self.processor = str(model), processor
        self.towers = Once(Towers.load, self.model, processor)

    def prepare(self, device: torch.device | str = "cpu") -> None:
        """Loads the model. Raises GirsanovError if there is none."""
        self.towers().to(device)

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B]. Raises GirsanovError if the prompts are no texts."""
        towers = self.towers()
        cosines = towers.agreement(x, texts(prompts.meta, len(x), self.name))
        return towers.model.logit_scale.exp().to(cosines) * cosines
