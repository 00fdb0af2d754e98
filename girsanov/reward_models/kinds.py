"""The networks of reward models, and what stands before them, by name."""

from girsanov.reward_models.causal import CausalConfig, Tokens
from girsanov.reward_models.fronts import Bytes, Front, Plain, Squares, WithLength
from girsanov.reward_models.frozen import Clip, Language
from girsanov.reward_models.gated import GatedConfig
from girsanov.reward_models.scorers import FeaturesConfig, LinearConfig, PixelsConfig, ScorerConfig, TextConfig

SCORERS: dict[str, type[ScorerConfig]] = {
    "linear": LinearConfig,
    "mlp": FeaturesConfig,
    "pixels": PixelsConfig,
    "text": TextConfig,
    "gated": GatedConfig,
    "causal-lm": CausalConfig,
}
"""Every network of reward models by name."""

FRONTS: dict[str, type[Front]] = {
    "plain": Plain,
    "squares": Squares,
    "bytes": Bytes,
    "clip": Clip,
    "language": Language,
    "tokens": Tokens,
    "with-length": WithLength,
}
"""Every front by name."""


def front_for(config: ScorerConfig) -> Front:
    """What stands before a network if nothing else is said."""
    if isinstance(config, TextConfig):
        return Bytes(config.length)
    if isinstance(config, CausalConfig):
        return Tokens(config.model, config.tokenizer, config.max_length)
    return Plain()
