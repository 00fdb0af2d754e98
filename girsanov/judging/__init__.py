"""Judges of pairs: scores, functions, and models behind a server; both orders against a preference for a place."""

from girsanov.judging.base import Answer as Answer
from girsanov.judging.base import BothOrders as BothOrders
from girsanov.judging.base import Comparison as Comparison
from girsanov.judging.base import PairJudge as PairJudge
from girsanov.judging.base import Verdict as Verdict
from girsanov.judging.base import position_bias as position_bias
from girsanov.judging.parsing import READERS as READERS
from girsanov.judging.scoring import ScoreJudge as ScoreJudge
from girsanov.judging.server import ServerJudge as ServerJudge
from girsanov.judging.trained import RewardJudge as RewardJudge

JUDGES: dict[str, type[PairJudge]] = {
    "both-orders": BothOrders,
    "score": ScoreJudge,
    "reward": RewardJudge,
    "server": ServerJudge,
}
"""Every judge by name."""
