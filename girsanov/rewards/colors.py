r"""The colour of an object by CLIP, as GenEval names it.

The object is cut out (on grey where its mask is known), and the colour is the likeliest of ten by the cosine between
the crop and the mean of the features of three texts, "a photo of a red dog", "a photo of a red-colored dog" and
"a photo of a red object", each of length one:

.. math:: \hat c = \arg\max_c \langle f(crop), \bar g_c / |\bar g_c| \rangle.

Only objects of a class whose rule asks for a colour are looked at, the surest 16 of it.

Reference: Ghosh et al. 2023, arXiv:2310.11513, section 3.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from girsanov.rewards.clip import Towers
from girsanov.rewards.detected import Detected
from girsanov.rewards.once import Once

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEXTS = ("a photo of a {color} {label}", "a photo of a {color}-colored {label}", "a photo of a {color} object")
GREY = 0x99 / 127.5 - 1
MOST = 16


@dataclass(frozen=True)
class Colors:
    """Names the colours of objects.

    Attributes:
        model: folder or name of a CLIP model of transformers.
    """

    model: str = "openai/clip-vit-large-patch14"
    towers: Once[Towers] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "towers", Once(Towers.load, self.model))

    def prepare(self, device: torch.device | str = "cpu") -> None:
        """Loads the model. Raises GirsanovError if there is none."""
        self.towers().to(device)

    @torch.no_grad()
    def __call__(self, image: Tensor, objects: Sequence[Detected], rules: Mapping[str, Any]) -> list[Detected]:
        """The objects of an image [C, H, W], the surest first, with colours where the rules ask for one."""
        asked = {str(r["class"]) for r in rules.get("include", ()) if isinstance(r, Mapping) and "color" in r}
        left = dict.fromkeys(asked, MOST)
        found = []
        for one in objects:
            if left.get(one.label, 0) > 0:
                left[one.label] -= 1
                one = dataclasses.replace(one, color=self.color(image, one))
            found.append(one)
        return found

    def color(self, image: Tensor, one: Detected) -> str:
        """The colour of an object; white where its box has no pixel."""
        crop = cut(image, one)
        if crop.numel() == 0:
            return COLORS[-1]
        towers = self.towers()
        seen = towers.images(crop[None])
        words = [text.format(color=c, label=one.label) for c in COLORS for text in TEXTS]
        means = F.normalize(towers.texts(words).view(len(COLORS), len(TEXTS), -1).mean(1), dim=-1)
        return COLORS[int((means @ seen[0]).argmax())]


def cut(image: Tensor, one: Detected) -> Tensor:
    """The part of an image [C, H, W] in the object's box, grey where its mask is not."""
    if one.mask is not None:
        image = torch.where(one.mask.to(image.device), image, GREY)
    left, top, right, bottom = (max(0, round(v)) for v in one.box)
    return image[:, top:bottom, left:right]
