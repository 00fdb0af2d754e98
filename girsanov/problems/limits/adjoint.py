"""Where the adjoint methods end: the lean adjoint's recursion, and the proximal map of the solver."""

from girsanov.grids import Grid
from girsanov.methods.adjoint.costs import QuadraticCost
from girsanov.methods.adjoint.matching import AdjointMatching
from girsanov.methods.adjoint.ode import ODEAdjointMatching
from girsanov.problems.laws import Gaussian
from girsanov.problems.limits.problem import GaussianProblem
from girsanov.problems.moments import affine_kernels
from girsanov.problems.proximal import Flow, discrete_flow
from girsanov.problems.recursions import Limit, lean_adjoint_limit
from girsanov.samplers.euler import Euler


def adjoint_limit(method: AdjointMatching, problem: GaussianProblem) -> Limit | None:
    """The lean-adjoint recursion on the sampler's kernels; none with a clipped adjoint."""
    if method.clip is not None:
        return None
    kernels, start = problem.chain(method.sampler, method.grid)
    seen = None
    if method.noiseless_last:
        seen = affine_kernels(problem.model, Euler(), Grid(method.grid.ts[-2:]))[0]
    return lean_adjoint_limit(kernels, start, problem.reward, method.beta, seen)


def adjoint_beta(method: AdjointMatching, problem: GaussianProblem) -> float | None:
    """beta, under a memoryless sampler."""
    return method.beta if method.sampler.memoryless else None


def proximal_limit(method: ODEAdjointMatching, problem: GaussianProblem) -> Limit | None:
    """The proximal map of the solver, for a quadratic cost."""
    if not isinstance(method.cost, QuadraticCost):
        return None
    flow = discrete_flow(problem.model, method.sampler, method.grid, method.last)
    return Limit(flow.law(problem.reward, method.cost.lam))


def proximal_aim(method: ODEAdjointMatching, problem: GaussianProblem) -> Gaussian | None:
    """The proximal map of the flow."""
    if not isinstance(method.cost, QuadraticCost):
        return None
    first = 1.0 if method.last is None else float(method.grid.ts[len(method.grid) - method.last])
    return Flow(problem.law, problem.process).law_of(problem.reward, method.cost.lam, first)
