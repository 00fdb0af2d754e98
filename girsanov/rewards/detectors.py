r"""Detectors of transformers by name: boxes of the DETR family, masks of Mask2Former (which GenEval uses); and those
that are asked in words (``zero_shot.py``).

Every query q has logits over classes. With a class for "nothing" (DETR, Mask2Former) its score is the largest of the
other probabilities; without one (RT-DETR, Deformable DETR) the classes are judged one by one:

.. math:: s_q = \max_c \mathrm{softmax}(l_q)_c \qquad \text{or} \qquad s_q = \max_c \sigma(l_{qc}).

A mask m of probabilities counts where it exceeds 1/2; the query's score is multiplied by its mean there, and the box is
the smallest one around it. With ``colors`` the objects whose rule asks for a colour get one (``colors.py``).

References: Carion et al. 2020, arXiv:2005.12872; Cheng et al. 2021, arXiv:2112.01527; Ghosh et al. 2023,
arXiv:2310.11513, section 3.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from girsanov.rewards.colors import Colors
from girsanov.rewards.detected import Detected, Detector
from girsanov.rewards.sight import LEAST, Pretrained, Sight, boxed
from girsanov.rewards.zero_shot import Words


class Boxes(Pretrained):
    """Boxes by any model of ``AutoModelForObjectDetection`` (RT-DETR, DETR, YOLOS, ...).

    Args:
        model: folder or name of the model.
        colors: names the colours of objects, or None.
    """

    kind = "AutoModelForObjectDetection"

    def __init__(self, model: str = "PekingU/rtdetr_r50vd", colors: Colors | None = None) -> None:
        super().__init__(model, colors)

    def found(self, sight: Sight, images: Tensor, rules: Sequence[Mapping[str, Any]]) -> list[list[Detected]]:
        """The objects of each image."""
        out = sight(images)
        scores, classes = sight.judged(out.logits)
        boxes = boxed(out.pred_boxes, *images.shape[2:])
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

    def found(self, sight: Sight, images: Tensor, rules: Sequence[Mapping[str, Any]]) -> list[list[Detected]]:
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


DETECTORS: dict[str, type[Detector]] = {"boxes": Boxes, "masks": Masks, "words": Words}
"""Every detector by name."""
