r"""A detector that is asked in words: OWLv2, which looks for the classes that the rules of a prompt name.

Every patch p of the image has a box and a logit for each text "a photo of a dog"; its class and score are

.. math:: c_p = \arg\max_c l_{pc}, \qquad s_p = \sigma(l_{p c_p}).

Only the classes of the image's own rules are asked for, so that a score does not depend on the rest of the batch;
``labels`` are asked for as well, to compete with them. Of boxes of one class that overlap by more than ``overlap``
(intersection over union) the surest stays. Images are padded to a square at right and bottom with black, as
transformers does, so boxes are shares of the longer side. Scores are lower than those of detectors with fixed classes.

References: Minderer et al. 2023, arXiv:2306.09683 (OWLv2); Ghosh et al. 2023, arXiv:2310.11513 (the rules).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.rewards.colors import Colors
from girsanov.rewards.detected import Detected
from girsanov.rewards.once import Once
from girsanov.rewards.pretrained import check_vocabulary, pretrained, settings_of
from girsanov.rewards.sight import LEAST, Pretrained, Sight, boxed

TEXT = "a photo of a {label}"


class Reader(Sight):
    """The network with its tokenizer."""

    tokenizer: Any = None

    @classmethod
    def load(cls, kind: str, name: str) -> "Reader":
        """From a folder or a name. Raises GirsanovError if there is none."""
        found = cls(pretrained(kind, name), settings_of(name))
        found.tokenizer = pretrained("CLIPTokenizer", name)
        check_vocabulary(found.tokenizer, int(found.model.config.text_config.vocab_size), name)
        return found

    def asked(self, words: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """Ids and mask [B * Q, L] of every image's texts, filled up with rows of zeros."""
        length = int(self.model.config.text_config.max_position_embeddings)
        device, most = next(self.model.parameters()).device, max(map(len, words))
        found = {k: torch.zeros(len(words), most, length, dtype=torch.long) for k in ("input_ids", "attention_mask")}
        for i, own in enumerate(words):
            read = self.tokenizer(
                [TEXT.format(label=w) for w in own],
                padding="max_length",
                truncation=True,
                max_length=length,
                return_tensors="pt",
            )
            for key, rows in found.items():
                rows[i, : len(own)] = read[key]
        return {k: v.flatten(0, 1).to(device) for k, v in found.items()}


class Words(Pretrained):
    """Boxes of what the rules name, by OWLv2.

    Args:
        model: folder or name of the model.
        colors: names the colours of objects, or None.
        labels: classes that every image is asked for besides its own.
        overlap: of two boxes of a class that overlap by more, the surer one stays; 1 keeps all.
    """

    kind = "Owlv2ForObjectDetection"

    def __init__(
        self,
        model: str = "google/owlv2-base-patch16-ensemble",
        colors: Colors | None = None,
        labels: Sequence[str] = (),
        overlap: float = 0.5,
    ) -> None:
        if not 0 <= overlap <= 1:
            raise GirsanovError(f"overlap = {overlap} is a share: give a number from 0 to 1")
        super().__init__(model, colors)
        self.labels, self.overlap = tuple(labels), overlap
        self.sight = Once(Reader.load, self.kind, self.model)

    def found(self, sight: Sight, images: Tensor, rules: Sequence[Mapping[str, Any]]) -> list[list[Detected]]:
        """The objects of each image."""
        assert isinstance(sight, Reader)
        words = [list(dict.fromkeys([*classes(r), *self.labels])) for r in rules]
        if not any(words):
            return [[] for _ in images]
        side = max(images.shape[2:])
        below, right = side - images.shape[2], side - images.shape[3]
        square = F.pad(images, (0, right, 0, below), value=-1.0)
        out = sight(square, **sight.asked(words))
        boxes = boxed(out.pred_boxes, side, side)
        return [self.of(boxes[i], out.logits[i, :, : len(own)].float(), own) for i, own in enumerate(words)]

    def of(self, boxes: Tensor, logits: Tensor, words: Sequence[str]) -> list[Detected]:
        """The objects of an image from boxes [P, 4] and logits [P, Q] of its words."""
        if not words:
            return []
        score, label = logits.sigmoid().max(-1)
        kept: list[Detected] = []
        for p in score.argsort(descending=True).tolist():
            left, top, right, bottom = boxes[p].tolist()
            one = Detected(words[int(label[p])], (left, top, right, bottom), float(score[p]))
            if one.score < LEAST:
                break
            if all(o.label != one.label or shared(o, one) <= self.overlap for o in kept):
                kept.append(one)
        return kept


def classes(rules: Mapping[str, Any]) -> Iterable[str]:
    """The classes that rules name."""
    every = [*rules.get("include", ()), *rules.get("exclude", ())]
    return [str(r["class"]) for r in every if isinstance(r, Mapping) and "class" in r]


def shared(a: Detected, b: Detected) -> float:
    """Intersection over union of two boxes."""
    width, height = (max(0.0, min(a.box[i + 2], b.box[i + 2]) - max(a.box[i], b.box[i])) for i in (0, 1))
    areas = sum((o.box[2] - o.box[0]) * (o.box[3] - o.box[1]) for o in (a, b))
    return width * height / max(areas - width * height, 1e-12)
