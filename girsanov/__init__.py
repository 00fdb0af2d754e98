"""Girsanov: fine-tune diffusion and flow models to rewards and preferences, as control of a stochastic process."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from girsanov.errors import GirsanovError as GirsanovError
    from girsanov.grids import Grid as Grid
    from girsanov.models import Guided as Guided
    from girsanov.models import Model as Model
    from girsanov.noise import Noise as Noise
    from girsanov.policy import Policy as Policy
    from girsanov.pretrain import Dataset as Dataset
    from girsanov.pretrain import make_model as make_model
    from girsanov.processes import VP as VP
    from girsanov.processes import RectifiedFlow as RectifiedFlow
    from girsanov.prompts import ClassPrompts as ClassPrompts
    from girsanov.prompts import TextPrompts as TextPrompts
    from girsanov.rewards.function import FunctionReward as FunctionReward
    from girsanov.rollout import replay as replay
    from girsanov.rollout import resimulate as resimulate
    from girsanov.rollout import rollout as rollout
    from girsanov.sampling import sample as sample
    from girsanov.train import TrainConfig as TrainConfig
    from girsanov.train import fit as fit
    from girsanov.types import Cond as Cond
    from girsanov.types import Prompts as Prompts

__version__ = "0.1.0"

_HOMES = {
    "GirsanovError": "girsanov.errors",
    "Grid": "girsanov.grids",
    "Guided": "girsanov.models",
    "Model": "girsanov.models",
    "Noise": "girsanov.noise",
    "Policy": "girsanov.policy",
    "replay": "girsanov.rollout",
    "resimulate": "girsanov.rollout",
    "rollout": "girsanov.rollout",
    "Cond": "girsanov.types",
    "Prompts": "girsanov.types",
    "FunctionReward": "girsanov.rewards.function",
    "VP": "girsanov.processes",
    "RectifiedFlow": "girsanov.processes",
    "TextPrompts": "girsanov.prompts",
    "ClassPrompts": "girsanov.prompts",
    "sample": "girsanov.sampling",
    "fit": "girsanov.train",
    "TrainConfig": "girsanov.train",
    "make_model": "girsanov.pretrain",
    "Dataset": "girsanov.pretrain",
}
"""Public name -> its module, imported when the name is first used: `girsanov --help` need not wait for torch."""

__all__ = sorted([*_HOMES, "__version__"])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'girsanov' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)


class _Package(ModuleType):
    """Keeps ``girsanov.rollout`` the function: importing the submodule of that name would put the module there."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
