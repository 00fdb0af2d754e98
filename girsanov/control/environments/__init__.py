"""Environments, one file each; ``ENVIRONMENTS`` lists them by name and the law tests run over it."""

from girsanov.control.environments.base import Environment as Environment
from girsanov.control.environments.lq import LQ as LQ
from girsanov.control.environments.lq_nd import VectorLQ as VectorLQ
from girsanov.control.environments.pairs import Pairs as Pairs
from girsanov.control.environments.portfolio import Portfolio as Portfolio

ENVIRONMENTS: dict[str, type[Environment]] = {
    "lq": LQ,
    "lq-nd": VectorLQ,
    "pairs": Pairs,
    "portfolio": Portfolio,
}
"""Every environment by name."""
