"""Reward models: train them on comparisons, measure them on others, use them as rewards and as judges."""

from girsanov.reward_models.data import Comparisons as Comparisons
from girsanov.reward_models.data import ranked as ranked
from girsanov.reward_models.gated import GatedConfig as GatedConfig
from girsanov.reward_models.kinds import SCORERS as SCORERS
from girsanov.reward_models.losses import REWARD_LOSSES as REWARD_LOSSES
from girsanov.reward_models.method import RewardModelling as RewardModelling
from girsanov.reward_models.method import Scoring as Scoring
from girsanov.reward_models.model import RewardModel as RewardModel
from girsanov.reward_models.model import load_reward_model as load_reward_model
from girsanov.reward_models.training import Measured as Measured
from girsanov.reward_models.training import measure as measure
from girsanov.reward_models.training import train_reward_model as train_reward_model
