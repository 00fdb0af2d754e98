r"""Where score as action ends, on the chain it trains, if its value network can be the value of the policy.

The gradient form regresses the shift of a step's mean on ``grad V / c`` after the step
(``methods/continuous/updates.py``). At a fixed point V is the value of the policy itself:

* path KL, V with the price (TD(lambda)): the path-KL optimum (``path_kl_limit``).
* path KL, V the mean terminal reward: V does not know what later steps pay, the recursion of ``per_step_kl_limit``.
* energy and a deterministic sampler, V with the price: the proximal map of the solver, as ODE adjoint matching has it.

The ratio form with unscaled increments has the same policy gradient, hence the same limit. Standardised advantages
have a scale that moves, the few-step form clips, and without a price the reward grows without bound: no limit.
"""

from girsanov.methods.continuous.ctrl import CTRL
from girsanov.methods.continuous.price import EnergyPrice, PathKLPrice
from girsanov.methods.continuous.ratio import Increments, RatioForm
from girsanov.methods.continuous.returns import LambdaReturn
from girsanov.methods.continuous.updates import GradientForm
from girsanov.methods.policy_gradient.steps import AllSteps
from girsanov.problems.laws import Gaussian
from girsanov.problems.limits.problem import GaussianProblem
from girsanov.problems.proximal import Flow, discrete_flow
from girsanov.problems.recursions import Limit, path_kl_limit, per_step_kl_limit
from girsanov.problems.rewards import tilt


def follows_the_gradient(method: CTRL) -> bool:
    """Whether the update is the policy gradient of reward less price, at every step."""
    increments = isinstance(method.update, RatioForm) and isinstance(method.update.advantage, Increments)
    return method.steps == AllSteps() and (isinstance(method.update, GradientForm) or increments)


def continuous_limit(method: CTRL, problem: GaussianProblem) -> Limit | None:
    """The recursion that price and target lead to."""
    if not follows_the_gradient(method):
        return None
    sees_price = isinstance(method.target, LambdaReturn)
    if isinstance(method.price, PathKLPrice):
        kernels, start = problem.chain(method.sampler, method.grid)
        recursion = path_kl_limit if sees_price else per_step_kl_limit
        return recursion(kernels, start, problem.reward, method.price.beta)
    if isinstance(method.price, EnergyPrice) and not method.sampler.stochastic and sees_price:
        return Limit(discrete_flow(problem.model, method.sampler, method.grid).law(problem.reward, method.price.lam))
    return None


def continuous_aim(method: CTRL, problem: GaussianProblem) -> Gaussian | None:
    """The tilted law under memoryless noise, the proximal map of the flow without noise."""
    if isinstance(method.price, EnergyPrice):
        return Flow(problem.law, problem.process).law_of(problem.reward, method.price.lam, 1.0)
    sees_price = isinstance(method.target, LambdaReturn) or problem.linear
    if not isinstance(method.price, PathKLPrice) or not method.sampler.memoryless or not sees_price:
        return None
    target = tilt(problem.law, problem.reward, method.price.beta)
    assert isinstance(target, Gaussian)
    return target
