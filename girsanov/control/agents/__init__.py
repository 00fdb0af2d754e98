"""Agents: methods whose samples are paths of an environment. ``AGENTS`` lists them by name."""

from girsanov.control.agents.base import Agent as Agent
from girsanov.control.agents.cpg import CPG as CPG
from girsanov.control.agents.cppo import CPPO as CPPO
from girsanov.control.agents.trust import LinearKL as LinearKL
from girsanov.control.agents.trust import SqrtKL as SqrtKL

AGENTS: dict[str, type[Agent]] = {
    "cpg": CPG,
    "cppo": CPPO,
}
"""Every agent by name."""
