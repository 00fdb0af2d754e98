"""What detectors of transformers share: how images are brought to the network, classes by name, loading and colours.

Images are resized and standardised as the model's ``preprocessor_config.json`` says, in torch operations.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.rewards.colors import Colors
from girsanov.rewards.detected import Detected, Detector
from girsanov.rewards.once import Once
from girsanov.rewards.pretrained import pretrained, settings_of

LEAST = 0.05  # objects that are less sure than this are never looked at
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
RENAMED = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "mouse": "computer mouse",
    "pottedplant": "potted plant",
    "remote": "tv remote",
    "sofa": "couch",
    "tvmonitor": "tv",
}
"""Names that models have for classes of COCO, and what GenEval's prompts call them."""


class Sight:
    """A network and how it wants its images.

    Args:
        model: of transformers.
        settings: of its image processor.
    """

    def __init__(self, model: Any, settings: Mapping[str, Any]) -> None:
        self.model, self.settings = model, settings
        self.labels = {int(i): RENAMED.get(str(label), str(label)) for i, label in model.config.id2label.items()}

    @classmethod
    def load(cls, kind: str, name: str) -> "Sight":
        """From a folder or a name. Raises GirsanovError if there is none."""
        return cls(pretrained(kind, name), settings_of(name))

    def sides(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image is resized to."""
        size = self.settings.get("size") or {}
        if not self.settings.get("do_resize", True) or not size:
            return height, width
        if isinstance(size, int):
            size = {"shortest_edge": size, "longest_edge": self.settings.get("max_size")}
        if "height" in size:
            return int(size["height"]), int(size["width"])
        scale = size["shortest_edge"] / min(height, width)
        if size.get("longest_edge"):
            scale = min(scale, size["longest_edge"] / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def __call__(self, images: Tensor, **more: Tensor) -> Any:
        """The network's output on images [B, 1 or 3, H, W] in [-1, 1], and on what else it reads."""
        weight = next(self.model.parameters())
        unit = ((images.float().clamp(-1, 1) + 1) / 2).expand(-1, 3, -1, -1).to(weight.device)
        sides = self.sides(*images.shape[2:])
        if sides != tuple(images.shape[2:]):
            unit = F.interpolate(unit, sides, mode="bilinear", antialias=True, align_corners=False)
        if self.settings.get("do_normalize", True):
            mean, std = (unit.new_tensor(self.settings.get(k, v)).view(3, 1, 1) for k, v in IMAGENET.items())
            unit = (unit - mean) / std
        return self.model(pixel_values=unit.to(weight.dtype), **more)

    def judged(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Score and class [B, Q] of every query, from logits [B, Q, classes or classes + 1]."""
        logits = logits.float()
        if logits.shape[-1] == len(self.labels) + 1:
            best = logits.softmax(-1)[..., :-1].max(-1)
        elif logits.shape[-1] == len(self.labels):
            best = logits.sigmoid().max(-1)
        else:
            raise GirsanovError(
                f"the detector has {logits.shape[-1]} logits for {len(self.labels)} classes: its config.json names "
                "other classes than it was trained on"
            )
        return best.values, best.indices


class Pretrained(Detector):
    """A detector whose network is one of transformers.

    Args:
        model: folder or name of the model.
        colors: names the colours of objects, or None.
    """

    kind = ""

    def __init__(self, model: str, colors: Colors | None = None) -> None:
        self.model, self.colors = str(model), colors
        self.sight = Once(Sight.load, self.kind, self.model)

    def prepare(self, device: torch.device | str = "cpu") -> None:
        """Loads the model. Raises GirsanovError if there is none."""
        self.sight().model.to(device)
        if self.colors is not None:
            self.colors.prepare(device)

    def __call__(self, images: Tensor, rules: Sequence[Mapping[str, Any]]) -> list[list[Detected]]:
        """The objects of each image, the surest first, with colours where a rule asks for one."""
        sight = self.sight()
        sight.model.to(images.device)
        with torch.no_grad():
            found = self.found(sight, images, rules)
        found = [sorted(objects, key=lambda o: -o.score) for objects in found]
        if self.colors is None:
            return found
        return [self.colors(x, objects, rule) for x, objects, rule in zip(images, found, rules, strict=True)]

    @abstractmethod
    def found(self, sight: Sight, images: Tensor, rules: Sequence[Mapping[str, Any]]) -> list[list[Detected]]:
        """The objects of each of images [B, C, H, W] in [-1, 1], which have these rules."""


def boxed(boxes: Tensor, height: float, width: float) -> Tensor:
    """Left, top, right, bottom [..., 4] in pixels, of centre and size in shares of height and width."""
    x, y, w, h = boxes.float().unbind(-1)
    return torch.stack([(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height], -1)
