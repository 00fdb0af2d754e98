"""Girsanov: fine-tune diffusion and flow models to rewards and preferences, as control of a stochastic process."""

from girsanov.errors import GirsanovError as GirsanovError
from girsanov.grids import Grid as Grid
from girsanov.models import Guided as Guided
from girsanov.models import Model as Model
from girsanov.noise import Noise as Noise
from girsanov.policy import Policy as Policy
from girsanov.rollout import replay as replay
from girsanov.rollout import resimulate as resimulate
from girsanov.rollout import rollout as rollout
from girsanov.types import Cond as Cond
from girsanov.types import Prompts as Prompts

__version__ = "0.1.0"
