"""Reinforcement learning on sequences of tokens, from the advantages and surrogates of the image methods."""

from girsanov.sequences.credit import CREDITS as CREDITS
from girsanov.sequences.credit import Credit as Credit
from girsanov.sequences.credit import rto_rewards as rto_rewards
from girsanov.sequences.credit import shaped as shaped
from girsanov.sequences.levels import AVERAGINGS as AVERAGINGS
from girsanov.sequences.levels import LEVELS as LEVELS
from girsanov.sequences.records import Tokens as Tokens
from girsanov.sequences.rl import SEQUENCE_RL as SEQUENCE_RL
from girsanov.sequences.rl import SequenceRL as SequenceRL
from girsanov.sequences.rl import Signals as Signals
from girsanov.sequences.rl import on_off_loss as on_off_loss
