"""The losses of the literature as points of the compositions: ``LOSSES``, and ``make_loss(name, ...)`` to build one.

Points that are no offline loss of pairs stand here: single items, lists, games, sampled data, moving references. Every
factory takes keyword arguments for what a user turns; defaults are as in ``points.py``.
"""

import inspect
from collections.abc import Callable
from typing import Any

from girsanov.errors import GirsanovError
from girsanov.preferences import points
from girsanov.preferences.base import Loss
from girsanov.preferences.games import SPPO, NashMDPG
from girsanov.preferences.imitation import ImitationLoss
from girsanov.preferences.links import Link, Logistic
from girsanov.preferences.lists import NCA, ExoList, PlackettLuce, SoftmaxLoss
from girsanov.preferences.moves import Copied, Soft, Staged
from girsanov.preferences.pairs import ManyNegatives, PairLoss, SortedGaps, SortedScores
from girsanov.preferences.pointwise import (
    Baseline,
    BatchMean,
    LossAverse,
    Midpoint,
    MismatchedKL,
    PointLoss,
    SigmoidUtility,
    Utility,
)
from girsanov.preferences.scores import Score
from girsanov.preferences.selection import Above, Accepted, BestAndWorst, Judged, Top
from girsanov.preferences.terms import Drift


def kto(
    beta: float = 0.1,
    desirable: float = 1.0,
    undesirable: float = 1.0,
    utility: Utility | None = None,
    baseline: Baseline | None = None,
) -> Loss:
    """KTO."""
    return PointLoss(
        score=Score(beta),
        desirable=desirable,
        undesirable=undesirable,
        utility=utility or SigmoidUtility(),
        baseline=baseline or MismatchedKL(),
    )


def diffusion_kto(beta: float = 0.1, utility: Utility | None = None) -> Loss:
    """KTO with Diffusion-KTO's baseline, the batch mean of the scores."""
    return PointLoss(score=Score(beta), utility=utility or SigmoidUtility(), baseline=BatchMean())


def bco(beta: float = 0.1) -> Loss:
    """BCO."""
    return PointLoss(score=Score(beta), utility=LossAverse(), baseline=Midpoint())


def aot(beta: float = 0.1) -> Loss:
    """AOT, paired."""
    return SortedGaps(beta=beta)


def aot_unpaired(beta: float = 0.1) -> Loss:
    """AOT, unpaired."""
    return SortedScores(score=Score(beta))


def povid(beta: float = 0.1, positive: float = 1.0, text: float = 0.5, image: float = 0.5) -> Loss:
    """POVID: a hallucinated answer and the answer to a noised image, both pushed down."""
    return ManyNegatives(score=Score(beta), positive=positive, negatives=(text, image))


def tr_dpo(beta: float = 0.1, alpha: float = 0.6) -> Loss:
    """TR-DPO with the soft update at every step."""
    return PairLoss(score=Score(beta), moves=Soft(alpha))


def tr_dpo_hard(beta: float = 0.1, every: int = 512) -> Loss:
    """TR-DPO with the hard update."""
    return PairLoss(score=Score(beta), moves=Copied(every))


def sdpo(beta: float = 0.1, ends: tuple[int, ...] = (1000, 2000)) -> Loss:
    """sDPO: the reference is the last chunk's model."""
    return PairLoss(score=Score(beta), moves=Staged(ends))


def oaif(beta: float = 0.1, link: Link | None = None) -> Loss:
    """OAIF: two samples of the policy, a judge, any link (DPO's by default; Square() and Hinge() are IPO's, SLiC's)."""
    return PairLoss(score=Score(beta), link=link or Logistic(), items=Judged())


def iterative(beta: float = 0.1, every: int = 512) -> Loss:
    """Iterative DPO and self-rewarding: best and worst of own samples, the reference moved to the last iterate."""
    return PairLoss(score=Score(beta), items=BestAndWorst(), moves=Copied(every))


def rso(beta: float = 0.1, temperature: float = 0.5, link: Link | None = None) -> Loss:
    """RSO: pairs of samples accepted towards the tilted law, ranked by the reward model."""
    return PairLoss(score=Score(beta), link=link or Logistic(), items=Accepted(temperature))


def expo(beta: float = 0.1, alpha: float = 0.3) -> Loss:
    """ExPO: DPO, used at the strength ``1 + alpha``."""
    return PairLoss(score=Score(beta), strength=1 + alpha)


def best_of_n(n: int = 1) -> Loss:
    """Imitation of the best samples (best-of-n distillation)."""
    return ImitationLoss(items=Top(n))


def rest(tau: float = 0.0) -> Loss:
    """ReST, improve step: imitation of what exceeds tau; raise tau from step to step."""
    return ImitationLoss(items=Above(tau))


def raft(n: int = 1) -> Loss:
    """RAFT: the same as best-of-n, with new samples from the policy in every round (a copied reference)."""
    return ImitationLoss(items=Top(n), moves=Copied(1))


def superhf(weight: float = 0.1) -> Loss:
    """SuperHF: the best of a superbatch, and a KL to the reference."""
    return ImitationLoss(items=Top(1), terms=(Drift(weight),))


def spin(beta: float = 0.1, every: int = 512) -> Loss:
    """SPIN: DPO with the data as winners and samples of the last iterate, which is the reference, as losers."""
    return PairLoss(score=Score(beta), moves=Copied(every))


LOSSES: dict[str, Callable[..., Loss]] = {
    "dpo": points.dpo,
    "ipo": points.ipo,
    "gpo": points.gpo,
    "hinge": points.hinge,
    "squared-hinge": points.squared_hinge,
    "exponential": points.exponential,
    "f-dpo-forward-kl": points.forward_kl,
    "f-dpo-alpha": points.alpha_divergence,
    "f-dpo-js": points.jensen_shannon,
    "cdpo": points.cdpo,
    "rdpo": points.rdpo,
    "r-dpo": points.r_dpo,
    "odpo": points.odpo,
    "mallows-dpo": points.mallows,
    "cpo": points.cpo,
    "orpo": points.orpo,
    "simpo": points.simpo,
    "rainbow-po": points.rainbow,
    "slic": points.slic,
    "dpop": points.dpop,
    "tdpo1": points.tdpo1,
    "tdpo2": points.tdpo2,
    "dense-dpo": points.dense_dpo,
    "exo": points.exo,
    "optune": points.optune,
    "lipo": points.lipo,
    "rank-dpo": points.rank_dpo,
    "rrhf": points.rrhf,
    "pro": points.pro,
    "plackett-luce": PlackettLuce,
    "infonca": SoftmaxLoss,
    "exo-list": ExoList,
    "nca": NCA,
    "kto": kto,
    "diffusion-kto": diffusion_kto,
    "bco": bco,
    "aot": aot,
    "aot-unpaired": aot_unpaired,
    "povid": povid,
    "sppo": SPPO,
    "nash-md-pg": NashMDPG,
    "tr-dpo": tr_dpo,
    "tr-dpo-hard": tr_dpo_hard,
    "sdpo": sdpo,
    "oaif": oaif,
    "iterative-dpo": iterative,
    "spin": spin,
    "rso": rso,
    "expo": expo,
    "best-of-n": best_of_n,
    "raft": raft,
    "rest": rest,
    "superhf": superhf,
}
"""Every named loss."""


def make_loss(name: str, **settings: Any) -> Loss:
    """A named loss. Raises GirsanovError with the names there are, or the settings that it has."""
    if name not in LOSSES:
        raise GirsanovError(f"no preference loss is called {name!r}: there are {', '.join(LOSSES)}")
    known = inspect.signature(LOSSES[name]).parameters
    for setting in settings:
        if setting not in known:
            raise GirsanovError(f"the loss {name} has no setting {setting!r}: it has {', '.join(known) or 'none'}")
    return LOSSES[name](**settings)
