"""Environments, one file each; ``ENVIRONMENTS`` lists them by name and the law tests run over it."""

from girsanov.control.environments.base import Environment as Environment
from girsanov.control.environments.lq import LQ as LQ

ENVIRONMENTS: dict[str, type[Environment]] = {
    "lq": LQ,
}
"""Every environment by name."""
