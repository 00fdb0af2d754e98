"""Methods, one file each in its family's folder; ``METHODS`` lists them by name and the law tests run over it."""

from girsanov.methods.adjoint.ode import ODEAdjointMatching as ODEAdjointMatching
from girsanov.methods.base import Method as Method

METHODS: dict[str, type[Method]] = {
    "ode-am": ODEAdjointMatching,
}
"""Every method by name."""
