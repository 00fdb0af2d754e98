"""Environments, one file each; ``ENVIRONMENTS`` lists them by name and the law tests run over it."""

from girsanov.control.environments.base import Environment as Environment
from girsanov.control.environments.car import Car as Car
from girsanov.control.environments.double_well import DoubleWell as DoubleWell
from girsanov.control.environments.lq import LQ as LQ
from girsanov.control.environments.lq_nd import VectorLQ as VectorLQ
from girsanov.control.environments.pairs import Pairs as Pairs
from girsanov.control.environments.portfolio import Portfolio as Portfolio

ENVIRONMENTS: dict[str, type[Environment]] = {
    "lq": LQ,
    "lq-nd": VectorLQ,
    "pairs": Pairs,
    "portfolio": Portfolio,
    "double-well": DoubleWell,
    "mountain-car": Car,
}
"""Every environment by name."""
