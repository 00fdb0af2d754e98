"""Losses of preferences for every modality: small frozen parts, composed. Needs torch alone.

Compared (log-probs, reference, lengths, scores of K items, best first) -> LOSSES[name](...) -> [B]
"""

from girsanov.preferences.base import Loss as Loss
from girsanov.preferences.games import SPPO as SPPO
from girsanov.preferences.games import NashMDPG as NashMDPG
from girsanov.preferences.games import equilibrium_gap as equilibrium_gap
from girsanov.preferences.games import geometric_mixture as geometric_mixture
from girsanov.preferences.games import nash_md_step as nash_md_step
from girsanov.preferences.imitation import ImitationLoss as ImitationLoss
from girsanov.preferences.labels import LABELS as LABELS
from girsanov.preferences.labels import Labels as Labels
from girsanov.preferences.links import LINKS as LINKS
from girsanov.preferences.links import Link as Link
from girsanov.preferences.margins import MARGINS as MARGINS
from girsanov.preferences.margins import Margin as Margin
from girsanov.preferences.moves import MOVES as MOVES
from girsanov.preferences.moves import Moves as Moves
from girsanov.preferences.moves import extrapolate as extrapolate
from girsanov.preferences.named import LOSSES as LOSSES
from girsanov.preferences.named import make_loss as make_loss
from girsanov.preferences.pairs import PairLoss as PairLoss
from girsanov.preferences.pointwise import BASELINES as BASELINES
from girsanov.preferences.pointwise import UTILITIES as UTILITIES
from girsanov.preferences.pointwise import PointLoss as PointLoss
from girsanov.preferences.records import Compared as Compared
from girsanov.preferences.records import completion as completion
from girsanov.preferences.records import dispersion as dispersion
from girsanov.preferences.records import sequence_kl as sequence_kl
from girsanov.preferences.scores import SHAPES as SHAPES
from girsanov.preferences.scores import Score as Score
from girsanov.preferences.selection import SELECTIONS as SELECTIONS
from girsanov.preferences.selection import Selection as Selection
from girsanov.preferences.terms import TERMS as TERMS
from girsanov.preferences.terms import Term as Term
from girsanov.preferences.weights import WEIGHTS as WEIGHTS
from girsanov.preferences.weights import Weight as Weight
