"""Adjoint matching, stochastic and deterministic, and the parts it is composed of, by name."""

from girsanov.methods.adjoint.gauss_newton import GaussNewton as GaussNewton
from girsanov.methods.adjoint.matching import AdjointMatching as AdjointMatching
from girsanov.methods.adjoint.ode import ODEAdjointMatching as ODEAdjointMatching
from girsanov.methods.adjoint.targets import FirstOrder as FirstOrder
from girsanov.methods.adjoint.targets import TargetRule as TargetRule

TARGETS: dict[str, type[TargetRule]] = {"first-order": FirstOrder, "gauss-newton": GaussNewton}
"""Every rule for the targets of deterministic adjoint matching by name."""
