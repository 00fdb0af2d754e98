r"""Detectors of transformers by name: boxes of the DETR family, masks of Mask2Former (which GenEval uses).

Every query q has logits over classes. With a class for "nothing" (DETR, Mask2Former) its score is the largest of the
other probabilities; without one (RT-DETR, Deformable DETR) the classes are judged one by one:

.. math:: s_q = \max_c \mathrm{softmax}(l_q)_c \qquad \text{or} \qquad s_q = \max_c \sigma(l_{qc}).

A mask m of probabilities counts where it exceeds 1/2; the query's score is multiplied by its mean there, and the box is
the smallest one around it. Images are resized and standardised as the model's ``preprocessor_config.json`` says, in
torch operations. With ``colors`` the objects whose rule asks for a colour get one (``colors.py``).

References: Carion et al. 2020, arXiv:2005.12872; Cheng et al. 2021, arXiv:2112.01527; Ghosh et al. 2023,
arXiv:2310.11513, section 3.
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

    def __call__(self, images: Tensor) -> Any:
        """The network's output on images [B, 1 or 3, H, W] in [-1, 1]."""
        weight = next(self.model.parameters())
        unit = ((images.float().clamp(-1, 1) + 1) / 2).expand(-1, 3, -1, -1).to(weight.device)
        sides = self.sides(*images.shape[2:])
        if sides != tuple(images.shape[2:]):
            unit = F.interpolate(unit, sides, mode="bilinear", antialias=True, align_corners=False)
        if self.settings.get("do_normalize", True):
            mean, std = (unit.new_tensor(self.settings.get(k, v)).view(3, 1, 1) for k, v in IMAGENET.items())
            unit = (unit - mean) / std
        return self.model(pixel_values=unit.to(weight.dtype))

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
    """What the detectors of this file share.

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
            found = self.found(sight, images)
        found = [sorted(objects, key=lambda o: -o.score) for objects in found]
        if self.colors is None:
            return found
        return [self.colors(x, objects, rule) for x, objects, rule in zip(images, found, rules, strict=True)]

    @abstractmethod
    def found(self, sight: Sight, images: Tensor) -> list[list[Detected]]:
        """The objects of each image."""


class Boxes(Pretrained):
    """Boxes by any model of ``AutoModelForObjectDetection`` (RT-DETR, DETR, YOLOS, ...).

    Args:
        model: folder or name of the model.
        colors: names the colours of objects, or None.
    """

    kind = "AutoModelForObjectDetection"

    def __init__(self, model: str = "PekingU/rtdetr_r50vd", colors: Colors | None = None) -> None:
        super().__init__(model, colors)

    def found(self, sight: Sight, images: Tensor) -> list[list[Detected]]:
        """The objects of each image."""
        out = sight(images)
        scores, classes = sight.judged(out.logits)
        height, width = images.shape[2:]
        x, y, w, h = out.pred_boxes.float().unbind(-1)  # centre and size, in shares of the image
        boxes = torch.stack([(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height], -1)
        return [
            [
                Detected(sight.labels[c], (b[0], b[1], b[2], b[3]), s)
                for s, c, b in zip(scores[i].tolist(), classes[i].tolist(), boxes[i].tolist(), strict=True)
                if s >= LEAST
            ]
            for i in range(len(images))
        ]


class Masks(Pretrained):
    """Masks by a Mask2Former.

    Args:
        model: folder or name of the model.
        colors: names the colours of objects, or None.
    """

    kind = "Mask2FormerForUniversalSegmentation"

    def __init__(
        self, model: str = "facebook/mask2former-swin-small-coco-instance", colors: Colors | None = None
    ) -> None:
        super().__init__(model, colors)

    def found(self, sight: Sight, images: Tensor) -> list[list[Detected]]:
        """The objects of each image; a query without a pixel is none."""
        out = sight(images)
        scores, classes = sight.judged(out.class_queries_logits)
        found = []
        for i in range(len(images)):
            sure = (scores[i] >= LEAST).nonzero()[:, 0].tolist()
            logits = out.masks_queries_logits[i, sure].float()
            chances = F.interpolate(logits[None], images.shape[2:], mode="bilinear", align_corners=False)[0].sigmoid()
            objects = [
                masked(m, sight.labels[int(classes[i, q])], float(scores[i, q]))
                for q, m in zip(sure, chances, strict=True)
            ]
            found.append([o for o in objects if o is not None and o.score >= LEAST])
        return found


def masked(chances: Tensor, label: str, score: float) -> Detected | None:
    """The object where chances [H, W] exceed 1/2, or None if they do nowhere."""
    mask = chances > 0.5
    if not bool(mask.any()):
        return None
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return Detected(label, box, score * float(chances[mask].mean()), mask=mask)


DETECTORS: dict[str, type[Detector]] = {"boxes": Boxes, "masks": Masks}
"""Every detector by name."""
