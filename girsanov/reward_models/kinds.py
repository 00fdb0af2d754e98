"""The networks of reward models by name."""

from girsanov.reward_models.gated import GatedConfig
from girsanov.reward_models.scorers import FeaturesConfig, LinearConfig, PixelsConfig, ScorerConfig, TextConfig

SCORERS: dict[str, type[ScorerConfig]] = {
    "linear": LinearConfig,
    "mlp": FeaturesConfig,
    "pixels": PixelsConfig,
    "text": TextConfig,
    "gated": GatedConfig,
}
"""Every network of reward models by name."""
