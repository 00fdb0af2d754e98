"""Preference methods: from pairs, labels or rankings of samples, given or made on the way."""

from girsanov.methods.preference.d3po import D3PO as D3PO
from girsanov.methods.preference.diffusion_dpo import DiffusionDPO as DiffusionDPO
from girsanov.methods.preference.diffusion_kto import DiffusionKTO as DiffusionKTO
from girsanov.methods.preference.dlpo import DLPO as DLPO
from girsanov.methods.preference.dspo import DSPO as DSPO
from girsanov.methods.preference.mapo import MaPO as MaPO
from girsanov.methods.preference.online_dpo import OnlineDPO as OnlineDPO
from girsanov.methods.preference.prdp import PRDP as PRDP
from girsanov.methods.preference.rank_dpo import RankDPO as RankDPO
from girsanov.methods.preference.rwr import RewardWeighted as RewardWeighted
from girsanov.methods.preference.sdpo import DiffusionSDPO as DiffusionSDPO
from girsanov.methods.preference.spo import SPO as SPO
from girsanov.methods.preference.weights import ConstantWeight, PairWeight, TiltWeight

PAIR_WEIGHTS: dict[str, type[PairWeight]] = {"constant": ConstantWeight, "tilt": TiltWeight}
