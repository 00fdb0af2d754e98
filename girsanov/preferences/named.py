"""The losses of the literature as points of the compositions: ``LOSSES``, and ``make_loss(name, ...)`` to build one.

Defaults are published ones where the paper or its code states one, else those of common implementations; scales belong
to text (summed token log-probs). Every factory takes keyword arguments for what a user turns.
"""

import inspect
from collections.abc import Callable
from typing import Any

from girsanov.errors import GirsanovError
from girsanov.preferences.base import Loss
from girsanov.preferences.games import SPPO, NashMDPG
from girsanov.preferences.imitation import ImitationLoss
from girsanov.preferences.labels import Debiased, Smoothed
from girsanov.preferences.links import Exo, Exponential, Hinge, Link, Logistic, Square, SquaredHinge
from girsanov.preferences.lists import NCA, PRO, ExoList, PlackettLuce, SoftmaxLoss
from girsanov.preferences.margins import ChosenDrop, Fixed, LengthGap, LogScoreGap, LoserKL, SequenceKL
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
from girsanov.preferences.scores import Alpha, ForwardKL, JensenShannon, Odds, Score
from girsanov.preferences.selection import Above, Accepted, BestAndWorst, Judged, Ranked, Top
from girsanov.preferences.terms import Drift, Imitation
from girsanov.preferences.weights import Dispersed, GapWeight, LambdaWeight, RankWeight, Uniform


def dpo(beta: float = 0.1) -> Loss:
    """DPO."""
    return PairLoss(score=Score(beta))


def ipo(beta: float = 0.1, length: float = 0.0) -> Loss:
    """IPO: ``(h - 1/2)^2``, which is ``beta^2 (D_w - D_l - 1 / (2 beta))^2``."""
    return PairLoss(score=Score(beta, length=length), link=Square(0.5))


def gpo(beta: float = 0.1, link: Link | None = None) -> Loss:
    """GPO with any link (the square about 1 by default)."""
    return PairLoss(score=Score(beta), link=link or Square(1.0))


def hinge(beta: float = 0.1, delta: float = 1.0) -> Loss:
    """GPO with the hinge: SLiC's normalised form."""
    return PairLoss(score=Score(beta), link=Hinge(delta))


def forward_kl(beta: float = 0.1) -> Loss:
    """f-DPO, forward KL."""
    return PairLoss(score=Score(beta, shape=ForwardKL()))


def alpha_divergence(beta: float = 0.1, alpha: float = 0.5) -> Loss:
    """f-DPO, alpha divergence."""
    return PairLoss(score=Score(beta, shape=Alpha(alpha)))


def jensen_shannon(beta: float = 0.1) -> Loss:
    """f-DPO, Jensen-Shannon."""
    return PairLoss(score=Score(beta, shape=JensenShannon()))


def cdpo(beta: float = 0.1, eps: float = 0.1) -> Loss:
    """cDPO."""
    return PairLoss(score=Score(beta), labels=Smoothed(eps))


def rdpo(beta: float = 0.1, eps: float = 0.1) -> Loss:
    """rDPO (robust)."""
    return PairLoss(score=Score(beta), labels=Debiased(eps))


def r_dpo(beta: float = 0.1, alpha: float = 0.01) -> Loss:
    """R-DPO (length-regularised), with the sign derived in ``margins.py``."""
    return PairLoss(score=Score(beta), margins=(LengthGap(alpha),))


def odpo(beta: float = 0.1, alpha: float = 1.0) -> Loss:
    """ODPO, the offset ``alpha log(score gap)``."""
    return PairLoss(score=Score(beta), margins=(LogScoreGap(alpha),))


def mallows(beta: float = 0.1) -> Loss:
    """Mallows-DPO."""
    return PairLoss(score=Score(beta), sharpness=Dispersed())


def cpo(beta: float = 0.1, weight: float = 1.0) -> Loss:
    """CPO."""
    return PairLoss(score=Score(beta, reference=0.0), terms=(Imitation(weight),))


def orpo(lam: float = 0.1) -> Loss:
    """ORPO: ``-log p_w - lam log sigma(log odds_w - log odds_l)``, p the mean token probability."""
    odds = Score(1.0, reference=0.0, length=1.0, shape=Odds())
    return PairLoss(score=odds, weight=Uniform(lam), terms=(Imitation(1.0, length=1.0),))


def simpo(beta: float = 2.0, gamma: float = 1.0) -> Loss:
    """SimPO."""
    return PairLoss(score=Score(beta, reference=0.0, length=1.0), margins=(Fixed(gamma),))


def rainbow(beta: float = 2.0, alpha: float = 0.25, gamma: float = 1.0, length: float = 1.0) -> Loss:
    """RainbowPO: ``phi [s_w - s_l]`` against ``pi_ref^alpha pi_gamma^(1 - alpha)``.

    The fictitious policy's scaled log-ratio is gamma on every pair, in SimPO's units, so the mixture subtracts
    ``alpha`` of the reference and ``(1 - alpha) gamma``. alpha = 1, length = 0 is Mallows-DPO; alpha = 0 SimPO.
    """
    score = Score(beta, reference=alpha, length=length)
    return PairLoss(score=score, margins=(Fixed((1 - alpha) * gamma),), sharpness=Dispersed())


def slic(delta: float = 1.0, weight: float = 0.1) -> Loss:
    """SLiC-HF."""
    return PairLoss(score=Score(1.0, reference=0.0), link=Hinge(delta), terms=(Imitation(weight),))


def dpop(beta: float = 0.3, lam: float = 50.0) -> Loss:
    """DPOP (Smaug)."""
    return PairLoss(score=Score(beta), margins=(ChosenDrop(lam),))


def tdpo1(beta: float = 0.1) -> Loss:
    """TDPO 1."""
    return PairLoss(score=Score(beta), margins=(SequenceKL(1.0),))


def tdpo2(beta: float = 0.1, alpha: float = 0.5) -> Loss:
    """TDPO 2."""
    return PairLoss(score=Score(beta), margins=(LoserKL(alpha),))


def dense_dpo(beta: float = 0.5) -> Loss:
    """Dense DPO: DPO of log-probs whose corrected segments weigh more (``records.completion``), per weighted token."""
    return PairLoss(score=Score(beta, length=1.0))


def exo(beta: float = 0.1, eps: float = 1e-3) -> Loss:
    """EXO on pairs."""
    return PairLoss(score=Score(beta), link=Exo(eps))


def optune(beta: float = 0.1, temperature: float = 1.0) -> Loss:
    """OPTune: DPO weighted by the reward gap (``selection.lowest`` picks what is generated anew)."""
    return PairLoss(score=Score(beta), weight=GapWeight(temperature), items=BestAndWorst())


def lipo(beta: float = 0.1) -> Loss:
    """LiPO-lambda."""
    return PairLoss(score=Score(beta), weight=LambdaWeight(), items=Ranked())


def rank_dpo(beta: float = 0.1) -> Loss:
    """RankDPO."""
    return PairLoss(score=Score(beta), weight=RankWeight(), items=Ranked())


def rrhf(weight: float = 1.0) -> Loss:
    """RRHF: a hinge at 0 on all pairs of mean log-probs, and imitation of the best."""
    score = Score(1.0, reference=0.0, length=1.0)
    return PairLoss(score=score, link=Hinge(0.0), terms=(Imitation(weight),), items=Ranked())


def pro(weight: float = 0.05) -> Loss:
    """PRO."""
    return PRO(terms=(Imitation(weight, length=1.0),), items=Ranked())


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


def exponential(beta: float = 0.1) -> Loss:
    """GPO with the exponential link: settles at half of DPO's logits."""
    return PairLoss(score=Score(beta), link=Exponential())


def squared_hinge(beta: float = 0.1, delta: float = 1.0) -> Loss:
    """GPO with the truncated square."""
    return PairLoss(score=Score(beta), link=SquaredHinge(delta))


LOSSES: dict[str, Callable[..., Loss]] = {
    "dpo": dpo,
    "ipo": ipo,
    "gpo": gpo,
    "hinge": hinge,
    "squared-hinge": squared_hinge,
    "exponential": exponential,
    "f-dpo-forward-kl": forward_kl,
    "f-dpo-alpha": alpha_divergence,
    "f-dpo-js": jensen_shannon,
    "cdpo": cdpo,
    "rdpo": rdpo,
    "r-dpo": r_dpo,
    "odpo": odpo,
    "mallows-dpo": mallows,
    "cpo": cpo,
    "orpo": orpo,
    "simpo": simpo,
    "rainbow-po": rainbow,
    "slic": slic,
    "dpop": dpop,
    "tdpo1": tdpo1,
    "tdpo2": tdpo2,
    "dense-dpo": dense_dpo,
    "exo": exo,
    "optune": optune,
    "lipo": lipo,
    "rank-dpo": rank_dpo,
    "rrhf": rrhf,
    "pro": pro,
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
