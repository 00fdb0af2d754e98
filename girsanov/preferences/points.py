"""Offline losses of pairs as points of the composition: one line each.

Defaults are published ones where the paper or its code states one, else those of common implementations; scales belong
to text (summed token log-probs).
"""

from girsanov.preferences.base import Loss
from girsanov.preferences.labels import Debiased, Smoothed
from girsanov.preferences.links import Exo, Exponential, Hinge, Link, Square, SquaredHinge
from girsanov.preferences.lists import PRO
from girsanov.preferences.margins import ChosenDrop, Fixed, LengthGap, LogScoreGap, LoserKL, SequenceKL
from girsanov.preferences.pairs import PairLoss
from girsanov.preferences.scores import Alpha, ForwardKL, JensenShannon, Odds, Score
from girsanov.preferences.selection import BestAndWorst, Ranked
from girsanov.preferences.terms import Imitation
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


def exponential(beta: float = 0.1) -> Loss:
    """GPO with the exponential link: settles at half of DPO's logits."""
    return PairLoss(score=Score(beta), link=Exponential())


def squared_hinge(beta: float = 0.1, delta: float = 1.0) -> Loss:
    """GPO with the truncated square."""
    return PairLoss(score=Score(beta), link=SquaredHinge(delta))
