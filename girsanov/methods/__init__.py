"""Methods, one file each in its family's folder; ``METHODS`` lists them by name and the law tests run over it."""

from girsanov.methods.adjoint.matching import AdjointMatching as AdjointMatching
from girsanov.methods.adjoint.ode import ODEAdjointMatching as ODEAdjointMatching
from girsanov.methods.base import Method as Method
from girsanov.methods.continuous.ctrl import CTRL as CTRL
from girsanov.methods.continuous.published import CTRLFewStep, CTRLRatio
from girsanov.methods.direct.gradient import AlignProp as AlignProp
from girsanov.methods.direct.gradient import DirectGradient as DirectGradient
from girsanov.methods.direct.lv import DRaFTLV as DRaFTLV
from girsanov.methods.direct.refl import ReFL as ReFL
from girsanov.methods.forward.grouped import CRD, DGPO
from girsanov.methods.forward.nft import DiffusionNFT as DiffusionNFT
from girsanov.methods.forward.orw import ORW
from girsanov.methods.forward.ram import RAM
from girsanov.methods.forward.ratio import AWM, FPO
from girsanov.methods.forward.rvm import RVM
from girsanov.methods.policy_gradient.branch import BranchGRPO
from girsanov.methods.policy_gradient.clipped import ClippedPG as ClippedPG
from girsanov.methods.policy_gradient.ddpo import DDPO, DPOK, DDPOScoreFunction
from girsanov.methods.policy_gradient.grpo import DanceGRPO, FlowGRPO, FlowGRPOFast, MixGRPO, MixGRPOFlash
from girsanov.methods.policy_gradient.remedies import PCPO, FlowDPPO, GRPOGuard, RSMHinge, TempFlowGRPO
from girsanov.methods.preference.d3po import D3PO
from girsanov.methods.preference.diffusion_dpo import DiffusionDPO as DiffusionDPO
from girsanov.methods.preference.diffusion_kto import DiffusionKTO
from girsanov.methods.preference.dlpo import DLPO
from girsanov.methods.preference.dspo import DSPO
from girsanov.methods.preference.mapo import MaPO
from girsanov.methods.preference.online_dpo import OnlineDPO
from girsanov.methods.preference.prdp import PRDP
from girsanov.methods.preference.rank_dpo import RankDPO
from girsanov.methods.preference.rwr import RewardWeighted
from girsanov.methods.preference.sdpo import DiffusionSDPO
from girsanov.methods.preference.spo import SPO

METHODS: dict[str, type[Method]] = {
    "am": AdjointMatching,
    "ode-am": ODEAdjointMatching,
    "draft": DirectGradient,
    "draft-lv": DRaFTLV,
    "alignprop": AlignProp,
    "refl": ReFL,
    "clipped-pg": ClippedPG,
    "ddpo": DDPO,
    "ddpo-sf": DDPOScoreFunction,
    "dpok": DPOK,
    "flow-grpo": FlowGRPO,
    "flow-grpo-fast": FlowGRPOFast,
    "dance-grpo": DanceGRPO,
    "mix-grpo": MixGRPO,
    "mix-grpo-flash": MixGRPOFlash,
    "branch-grpo": BranchGRPO,
    "grpo-guard": GRPOGuard,
    "pcpo": PCPO,
    "tempflow-grpo": TempFlowGRPO,
    "flow-dppo": FlowDPPO,
    "rsm-hinge": RSMHinge,
    "ctrl": CTRL,
    "ctrl-ratio": CTRLRatio,
    "ctrl-few-step": CTRLFewStep,
    "nft": DiffusionNFT,
    "awm": AWM,
    "fpo": FPO,
    "ram": RAM,
    "rvm": RVM,
    "orw-cfm-w2": ORW,
    "dgpo": DGPO,
    "crd": CRD,
    "diffusion-dpo": DiffusionDPO,
    "diffusion-sdpo": DiffusionSDPO,
    "dspo": DSPO,
    "mapo": MaPO,
    "rank-dpo": RankDPO,
    "diffusion-kto": DiffusionKTO,
    "online-dpo": OnlineDPO,
    "d3po": D3PO,
    "spo": SPO,
    "prdp": PRDP,
    "dlpo": DLPO,
    "rwr": RewardWeighted,
}
"""Every method by name."""
