"""Language models: any causal LM of ``transformers`` tuned by the same losses, parts and loop as images."""

from girsanov.language.data import TextComparisons as TextComparisons
from girsanov.language.data import TextRequests as TextRequests
from girsanov.language.generation import Sampling as Sampling
from girsanov.language.generation import generate as generate
from girsanov.language.model import LanguageModel as LanguageModel
from girsanov.language.model import LanguageNet as LanguageNet
from girsanov.language.model import lora_targets as lora_targets
from girsanov.language.named import LANGUAGE_METHODS as LANGUAGE_METHODS
from girsanov.language.online import OnlinePreference as OnlinePreference
from girsanov.language.policy_gradient import LanguageRL as LanguageRL
from girsanov.language.preference import OfflinePreference as OfflinePreference
from girsanov.language.rewards import TEXT_REWARDS as TEXT_REWARDS
from girsanov.language.rewards import TextReward as TextReward
from girsanov.language.tokens import Completions as Completions
from girsanov.language.tokens import Encoder as Encoder
