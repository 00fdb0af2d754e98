"""Rewards: scores of decoded samples. ``REWARDS`` lists the built-in ones, a file and a function name bring another."""

import difflib
import inspect
from pathlib import Path

from girsanov.errors import GirsanovError
from girsanov.rewards.aesthetic import Aesthetic as Aesthetic
from girsanov.rewards.base import Reward as Reward
from girsanov.rewards.clip import CLIPScore as CLIPScore
from girsanov.rewards.clip import PickScore as PickScore
from girsanov.rewards.combine import WeightedSum as WeightedSum
from girsanov.rewards.function import FunctionReward as FunctionReward
from girsanov.rewards.function import as_reward as as_reward
from girsanov.rewards.function import load_object as load_object
from girsanov.rewards.hps import HPSv2 as HPSv2
from girsanov.rewards.hpsv3 import HPSv3 as HPSv3
from girsanov.rewards.image_reward import ImageReward as ImageReward
from girsanov.rewards.jpeg import Compressible as Compressible
from girsanov.rewards.jpeg import Incompressible as Incompressible
from girsanov.rewards.laion import LAIONAesthetic as LAIONAesthetic
from girsanov.rewards.layout import Slanted as Slanted
from girsanov.rewards.layout import Symmetric as Symmetric
from girsanov.rewards.objects import ObjectRules as ObjectRules
from girsanov.rewards.ocr import OCRAccuracy as OCRAccuracy
from girsanov.rewards.pool import PooledReward as PooledReward
from girsanov.rewards.remote import RemoteReward as RemoteReward
from girsanov.rewards.strokes import Bold as Bold
from girsanov.rewards.strokes import Ink as Ink
from girsanov.rewards.strokes import Thin as Thin
from girsanov.rewards.trained import Trained as Trained
from girsanov.rewards.vlm import VLMReward as VLMReward

REWARDS: dict[str, type[Reward]] = {
    "bold": Bold,
    "thin": Thin,
    "ink": Ink,
    "symmetric": Symmetric,
    "slanted": Slanted,
    "compressible": Compressible,
    "incompressible": Incompressible,
    "aesthetic": Aesthetic,
    "clip-score": CLIPScore,
    "pick-score": PickScore,
    "hpsv2": HPSv2,
    "hpsv3": HPSv3,
    "image-reward": ImageReward,
    "laion-aesthetic": LAIONAesthetic,
    "vlm-judge": VLMReward,
    "ocr": OCRAccuracy,
    "objects": ObjectRules,
    "trained": Trained,
    "sum": WeightedSum,
    "pooled": PooledReward,
    "remote": RemoteReward,
}
"""Every built-in reward by name."""


def load_reward(spec: str) -> Reward:
    """A built-in reward by its name, the user's own as ``my_file.py:fn``, a server's by its ``http://`` address, or a
    trained one by its folder.

    The user's object is a function ``fn(images, prompts) -> scores``, a Reward, or a Reward class without arguments.

    Raises GirsanovError on an unknown name, a missing or failing file, or an object that is no reward.
    """
    if spec.startswith(("http://", "https://")):
        return RemoteReward(spec)
    if (Path(spec) / "reward.json").is_file():
        return Trained(spec)
    if ":" in spec or spec.endswith(".py"):
        return as_reward(load_object(spec), spec.rpartition(":")[2])
    if spec not in REWARDS:
        near = difflib.get_close_matches(spec, REWARDS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise GirsanovError(f"unknown reward {spec!r}: {hint}choose {', '.join(REWARDS)}, or your own as my_file.py:fn")
    needed = [p.name for p in inspect.signature(REWARDS[spec]).parameters.values() if p.default is p.empty]
    if needed:
        raise GirsanovError(
            f"the reward {spec!r} needs {' and '.join(needed)}: describe it in a configuration, as "
            f"{{kind: {spec}, {needed[0]}: ...}}"
        )
    return REWARDS[spec]()
