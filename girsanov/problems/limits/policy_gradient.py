r"""Where policy gradients end, on the chain they train.

With the advantage's scale c (``scales.py``), the factor w_k of a step's log-ratio and loss and the factor u_k of its
KL, step k sees ``beta_k = beta u_k / (c w_k)``; steps that are never trained keep the reference's mean. Then

* path KL, uniform weights: the optimum at ``beta / c`` (``path_kl_limit``).
* per-step KL on one sampler: the recursion with a beta a step (``per_step_kl_limit``).
* per-step KL under a moving window: step k is trained in every window w that holds it, and the steps outside the window
  are deterministic there, so the later steps carry its noise on differently. For a linear reward ``b^T x`` the fixed
  point is closed: with ``N_{k,w}`` the map of step k's noise to the end and p_w window w's share of the loss,

.. math:: \delta_k = std_k \frac{\sum_w p_w\, c_w\, w_k\, N_{k,w}^T b}{\sum_w p_w\, \beta u_k}

  (over the windows that hold k). It holds if the window moves faster than the policy learns, and for any solver outside
  it. The limit is the end law under the method's ``sampler``, its window where it stands in the configuration.

No KL, no limit: the reward grows without bound. Trees normalise every depth by its own spread, so only an unscaled
advantage has a known c there.
"""

import math

import torch

from girsanov.methods.advantages import LeaveOneOut
from girsanov.methods.base import Turn
from girsanov.methods.policy_gradient.clipped import ClippedPG
from girsanov.methods.policy_gradient.credit import PlainRatio, Uniform
from girsanov.methods.policy_gradient.paths import Chains
from girsanov.methods.policy_gradient.penalty import PathKL, PerStepKL
from girsanov.methods.policy_gradient.schedules import Unchanged
from girsanov.methods.policy_gradient.steps import AllSteps
from girsanov.methods.policy_gradient.windows import Window
from girsanov.problems.laws import Gaussian
from girsanov.problems.limits.problem import GaussianProblem
from girsanov.problems.limits.scales import reward_std, settled, signal_scale
from girsanov.problems.moments import end_law, end_map, prior_moments
from girsanov.problems.recursions import Limit, corrected_model, path_kl_limit, per_step_kl_limit
from girsanov.problems.rewards import tilt
from girsanov.samplers.base import Sampler
from girsanov.types import Kernel

CYCLE = 1000  # iterations over which windows and trained steps are counted


def policy_gradient_limit(method: ClippedPG, problem: GaussianProblem) -> Limit | None:
    """The recursion of the penalty, or the closed form of a moving window; None where neither applies."""
    if method.correct is not None or (not isinstance(method.paths, Chains) and method.advantage != LeaveOneOut()):
        return None
    if isinstance(method.kl, PathKL):
        return _path(method, problem)
    if not isinstance(method.kl, PerStepKL):
        return None
    if problem.linear and isinstance(method.schedule, Unchanged | Window):
        return _linear(method, problem)
    fixed = isinstance(method.schedule, Unchanged) and getattr(method.sampler, "outside", method.sampler).single_step
    return _per_step(method, problem) if fixed else None


def policy_gradient_beta(method: ClippedPG, problem: GaussianProblem) -> float | None:
    """``beta / c`` of the path KL under a memoryless sampler (a linear reward: per-step KL too)."""
    penalty, weights = method.kl, (method.weight, getattr(method.kl, "weight", None))
    if penalty is None or not method.sampler.memoryless or not all(isinstance(w, Uniform) for w in weights):
        return None
    if not (isinstance(penalty, PathKL) or problem.linear) or not isinstance(method.ratio, PlainRatio):
        return None

    def law(c: float) -> Gaussian:
        target = tilt(problem.law, problem.reward, penalty.beta / c)
        assert isinstance(target, Gaussian)
        return target

    c = settled(law, lambda end: _scale(method, problem, end, None))
    return None if c is None else penalty.beta / c


def _scale(method: ClippedPG, problem: GaussianProblem, end: Gaussian, given_start: Gaussian | None) -> float | None:
    """c of the method's advantage where the policy's end law is ``end`` (``given_start``: from one start)."""
    overall = reward_std(end, problem.reward)
    if not method.same_start or given_start is None:
        return signal_scale(method.advantage, problem.group, overall, overall)
    if not problem.linear:  # the spread within a group depends on its start
        c = signal_scale(method.advantage, problem.group, float("nan"), overall)
        return None if c is None or math.isnan(c) else c
    return signal_scale(method.advantage, problem.group, reward_std(given_start, problem.reward), overall)


def _path(method: ClippedPG, problem: GaussianProblem) -> Limit | None:
    assert method.kl is not None
    plain = isinstance(method.ratio, PlainRatio) and isinstance(method.weight, Uniform)
    whole = method.steps == AllSteps() and isinstance(method.schedule, Unchanged)
    if not plain or not whole or not isinstance(method.kl.weight, Uniform):
        return None
    kernels, start = problem.chain(method.sampler, method.grid)
    beta = method.kl.beta

    def at(c: float) -> Limit:
        return path_kl_limit(kernels, start, problem.reward, beta / c)

    c = settled(lambda c: at(c).law, lambda end: _scale(method, problem, end, None))
    return None if c is None else at(c)


def kernels_at_rest(method: ClippedPG, problem: GaussianProblem, sampler: Sampler) -> list[tuple[Kernel, float]]:
    """A kernel of every step of the grid (std, gain and whether it has noise are asked of it), and ``beta_k c``."""
    model, one, found = problem.model, torch.ones(1, dtype=torch.float64), list[tuple[Kernel, float]]()
    assert method.kl is not None
    state, x = sampler.init(model, method.grid), torch.zeros(1, *model.shape, dtype=torch.float64)
    for step in method.grid:
        kernel, state = sampler.kernel(model, x, step, None, state)
        beta = float("inf")
        if kernel.stochastic:
            signal = method.ratio(one, 0 * one, kernel, step) * method.weight(kernel, step)
            beta = float(method.kl.beta * method.kl.weight(kernel, step) / signal)
        found.append((kernel, beta))
    return found


def trained(method: ClippedPG, noisy: list[int], turn: Turn) -> list[int]:
    """The steps of the grid that an iteration trains, of those that have noise."""
    return [noisy[k] for k in method.steps(len(noisy), turn)]


def _per_step(method: ClippedPG, problem: GaussianProblem) -> Limit | None:
    kernels, start = problem.chain(method.sampler, method.grid)
    rest = kernels_at_rest(method, problem, method.sampler)
    noisy = [k for k, (kernel, _) in enumerate(rest) if kernel.stochastic]
    ever = {k for i in range(CYCLE) for k in trained(method, noisy, Turn(0, i, CYCLE))}
    betas = [beta if k in ever else float("inf") for k, (_, beta) in enumerate(rest)]

    def at(c: float) -> Limit:
        return per_step_kl_limit(kernels, start, problem.reward, [beta / c for beta in betas])

    c = settled(lambda c: at(c).law, lambda end: _scale(method, problem, end, None if not method.same_start else end))
    return None if c is None else at(c)


def _linear(method: ClippedPG, problem: GaussianProblem) -> Limit | None:
    model, grid, b = problem.law.model(problem.process), method.grid, problem.reward.b
    pull, price = torch.zeros(len(grid), len(b), dtype=torch.float64), torch.zeros(len(grid), dtype=torch.float64)
    gains, (mean, cov) = torch.ones_like(price), prior_moments(model)
    turns = [Turn(0, i, CYCLE) for i in range(CYCLE)]
    visits = dict[Sampler, list[Turn]]()
    for turn in turns:
        visits.setdefault(method.schedule.at(method.sampler, grid, turn), []).append(turn)
    for sampler, when in visits.items():
        ends = end_map(model, sampler, grid)
        c = _scale(method, problem, ends.law(mean, cov), ends.law(mean, 0 * cov))
        if c is None:
            return None
        rest = kernels_at_rest(method, problem, sampler)
        noisy, share = [k for k, (kernel, _) in enumerate(rest) if kernel.stochastic], [0.0] * len(grid)
        for turn in when:
            chosen = trained(method, noisy, turn)
            for k in chosen:
                share[k] += 1 / len(chosen)
        for k in (k for k in noisy if share[k] > 0):
            kernel, beta = rest[k]
            pull[k] += share[k] * c * float(kernel.std) * (ends.noise[noisy.index(k)].mT @ b)
            price[k] += share[k] * beta
            gains[k] = float(kernel.gain or 1.0)
    free = price > 0
    shifts = torch.zeros_like(pull)
    shifts[free] = pull[free] / (price * gains)[free].unsqueeze(1)
    slopes = torch.zeros(len(grid), *problem.law.cov.shape, dtype=torch.float64)
    tuned = corrected_model(model, grid, list(slopes), list(shifts))
    return Limit(end_law(tuned, method.sampler, grid), field=(slopes, shifts))
