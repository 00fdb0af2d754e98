r"""Object rules in the manner of GenEval: the objects that the prompt asks for, as many, so coloured, so placed.

A detector (``detectors.py``, or yours) names the objects of each image; the rules of a prompt (its metadata, as
GenEval's files have it) are checked on their boxes:

- ``include: [{"class": "dog", "count": 2, "color": "red", "position": ["left of", 0]}]``: at least ``count`` of them;
  each of the ``count`` surest ones has the colour; each lies so from every object of the include rule with that number.
- ``exclude: [{"class": "dog", "count": 3}]``: fewer than ``count``.

*Place.* With centres c and sizes w of the boxes of a and b, and o = c_a - c_b, an axis counts beyond a margin

.. math:: o'_i = \operatorname{sign}(o_i) \max\big(|o_i| - 0.1 (w^a_i + w^b_i), 0\big), \qquad d = o' / |o|,

and a is left of b if d_x < -1/2, right if d_x > 1/2, above if d_y < -1/2, below if d_y > 1/2. The reward is 1 if every
rule holds, else 0; with ``partial`` the share of rules that hold. No gradient.

Reference: Ghosh et al. 2023, arXiv:2310.11513.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.rewards.base import Reward
from girsanov.rewards.detected import Detected as Detected
from girsanov.rewards.detected import Detector, as_detector
from girsanov.types import Prompts

MARGIN = 0.1
RELATIONS = ("left of", "right of", "above", "below")


def relations(a: Detected, b: Detected) -> set[str]:
    """How a lies from b: none, one or two of ``RELATIONS``."""
    offset, beyond = [], []
    for i in (0, 1):
        gap = (a.box[i] + a.box[i + 2] - b.box[i] - b.box[i + 2]) / 2
        size = abs(a.box[i + 2] - a.box[i]) + abs(b.box[i + 2] - b.box[i])
        offset.append(gap)
        beyond.append(math.copysign(max(abs(gap) - MARGIN * size, 0.0), gap))
    if max(map(abs, beyond)) < 1e-3:
        return set()
    dx, dy = (v / math.hypot(*offset) for v in beyond)
    holds = (dx < -0.5, dx > 0.5, dy < -0.5, dy > 0.5)
    return {name for name, true in zip(RELATIONS, holds, strict=True) if true}


def check(objects: Sequence[Detected], rules: Mapping[str, Any], name: str = "objects") -> list[bool]:
    """Whether each rule holds, those of ``include`` first.

    Raises GirsanovError on rules that cannot be read.
    """
    by_class: dict[str, list[Detected]] = {}
    for found in sorted(objects, key=lambda o: -o.score):
        by_class.setdefault(found.label, []).append(found)
    held, groups = list[bool](), list[list[Detected] | None]()
    for rule in rules.get("include", ()):
        wanted, count = asked(rule, name)
        group = by_class.get(wanted, [])[:count]
        ok = len(group) == count and ("color" not in rule or all(o.color == rule["color"] for o in group))
        if "position" in rule:
            relation, target = place(rule["position"], len(groups), name)
            others = groups[target]
            ok = ok and others is not None and all(relation in relations(a, b) for a in group for b in others)
        held.append(ok)
        groups.append(group if ok else None)
    for rule in rules.get("exclude", ()):
        wanted, count = asked(rule, name)
        held.append(len(by_class.get(wanted, [])) < count)
    if not held:
        raise GirsanovError(f"the reward {name!r} needs rules: give the prompts a column include or exclude")
    return held


def asked(rule: Any, name: str) -> tuple[str, int]:
    """Class and count of a rule."""
    try:
        wanted, count = str(rule["class"]), int(rule["count"])
    except (TypeError, KeyError, ValueError):
        count = 0
    if count < 1:
        raise GirsanovError(f'{rule!r} is no rule of {name!r}: write it as {{"class": "dog", "count": 1}}')
    return wanted, count


def place(position: Any, known: int, name: str) -> tuple[str, int]:
    """Relation and number of the rule it refers to, an earlier one."""
    try:
        relation, target = position
    except (TypeError, ValueError):
        relation, target = None, -1
    if relation not in RELATIONS or not isinstance(target, int) or not 0 <= target < known:
        raise GirsanovError(
            f"{position!r} is no position of {name!r}: write one of {', '.join(RELATIONS)} and the number of an "
            'earlier include rule, as ["left of", 0]'
        )
    return relation, target


class ObjectRules(Reward):
    """Rules on a detector's objects.

    Args:
        detector: finds the objects, with their colours where rules ask for them; or a function of yours.
        threshold: objects that it is less sure of do not count.
        counting: the threshold for prompts whose metadata say ``"tag": "counting"``.
        partial: the share of rules that hold, instead of 1 or 0.
    """

    name = "objects"

    def __init__(
        self, detector: Detector, threshold: float = 0.3, partial: bool = False, counting: float = 0.9
    ) -> None:
        self.detector, self.threshold, self.partial = as_detector(detector), threshold, partial
        self.counting = counting

    def prepare(self, device: torch.device | str = "cpu") -> None:
        """What the detector loads. Raises GirsanovError if it is missing."""
        self.detector.prepare(device)

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B] in [0, 1]. Raises GirsanovError if a prompt has no rules."""
        rules = list(prompts.meta)
        if len(rules) != len(x) or not all(isinstance(r, Mapping) for r in rules):
            raise GirsanovError(f"the reward {self.name!r} needs rules: give the prompts a column include or exclude")
        with torch.no_grad():
            found = self.detector(x.detach(), rules)
        if len(found) != len(x):
            raise GirsanovError(f"the detector of {self.name!r} gave {len(found)} lists of objects for {len(x)} images")
        scores = []
        for objects, own in zip(found, rules, strict=True):
            least = self.counting if own.get("tag") == "counting" else self.threshold
            held = check([o for o in objects if o.score >= least], own, self.name)
            scores.append(sum(held) / len(held) if self.partial else float(all(held)))
        return torch.tensor(scores, dtype=x.dtype, device=x.device)
