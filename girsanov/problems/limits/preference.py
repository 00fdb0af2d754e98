r"""Where preference methods end.

Diffusion-DPO with a linear reward moves the prediction by a shift at each time (``dpo_shift``); its tilt weight makes
that the tilted law's own prediction on round data. Rankings of Plackett and Luce's law have the same optimum under its
likelihood (``RankDPO`` with that loss): the score of every item is its logit, up to what all of them share.

PRDP's loss is 0 at the path-KL optimum of its chain, for a linear reward. Reward-weighted regression has the velocity
of the law that the solver samples from the reference, tilted.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.preference.diffusion_dpo import DiffusionDPO
from girsanov.methods.preference.prdp import PRDP
from girsanov.methods.preference.rank_dpo import RankDPO
from girsanov.methods.preference.rwr import RewardWeighted
from girsanov.methods.preference.weights import PairWeight, TiltWeight
from girsanov.models import Model
from girsanov.predictions import row
from girsanov.preferences.labels import Clean
from girsanov.preferences.links import Logistic
from girsanov.preferences.lists import PlackettLuce
from girsanov.preferences.scores import Score
from girsanov.problems.laws import Gaussian
from girsanov.problems.limits.problem import GaussianProblem
from girsanov.problems.moments import end_law
from girsanov.problems.recursions import Limit, path_kl_limit
from girsanov.problems.rewards import tilt
from girsanov.types import Cond


def shifted_model(model: Model, shift: Callable[[Tensor], Tensor]) -> Model:
    """The model whose raw prediction at time t (float64 []) is moved by ``shift(t)`` [d]."""

    def net(x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        moves = {float(v): shift(v) for v in t.double().unique()}
        move = torch.stack([moves[float(v)] for v in t.double()])
        return model.net(x, t, cond) + move.to(x.dtype).view_as(x)

    return dataclasses.replace(model, net=net)


def dpo_shift(problem: GaussianProblem, weight: PairWeight) -> Callable[[Tensor], Tensor]:
    r"""Population optimum of Diffusion-DPO at time t for Bradley-Terry labels of ``b^T x / T``: a shift of p.

    With shared noise the reference's errors of the two images differ by ``c sigma^2 S^{-1} (x_w - x_l)``, ``S = alpha^2
    C + sigma^2``, where ``p - p_ref = c (x_0 - x_0_ref)`` at fixed x_t. A shift delta has the logit ``B delta^T`` times
    that, so ``delta = S b / (T B c sigma^2)`` gives the true odds of every pair, which no function betters.
    """
    if not problem.linear:
        raise GirsanovError("the optimum of Diffusion-DPO is known for a linear reward alone: give LinearReward(b)")

    def shift(t: Tensor) -> Tensor:
        s = problem.process(t)
        a, b = row(s, problem.prediction)
        c = a - b * s.alpha / s.sigma
        S = s.alpha**2 * problem.law.cov + s.sigma**2 * torch.eye(problem.law.d, dtype=torch.float64)
        B = weight(s, problem.prediction, problem.law.d)
        return S @ problem.reward.b / (problem.bt_temperature * B * c * s.sigma**2)

    return shift


def _likelihood(method: DiffusionDPO | RankDPO) -> bool:
    """Whether the loss is Bradley and Terry's or Plackett and Luce's likelihood: all others have other optima."""
    if isinstance(method, RankDPO):
        return method.loss == PlackettLuce(score=Score(1.0))
    return method.link == Logistic() and method.labels == Clean()


def dpo_limit(method: DiffusionDPO | RankDPO, problem: GaussianProblem) -> Limit | None:
    """One shift of the prediction at each time, sampled on the problem's grid."""
    if not problem.linear or not _likelihood(method):
        return None
    shift = dpo_shift(problem, method.weight)
    # At the two ends one image says nothing of the other's reward, and the weight's cap rules: a network that was
    # trained between them is taken to keep its value there.
    model = shifted_model(problem.model, lambda t: shift(t.clamp(2e-3, 1 - 2e-3)))
    return Limit(end_law(model, problem.sampler, problem.grid))


def dpo_beta(method: DiffusionDPO | RankDPO, problem: GaussianProblem) -> float | None:
    """``beta T`` of the tilt weight on round data of its std."""
    if not isinstance(method.weight, TiltWeight) or not _likelihood(method):
        return None
    ball = torch.allclose(problem.law.cov, method.weight.std**2 * torch.eye(problem.law.d, dtype=torch.float64))
    return method.weight.beta * problem.bt_temperature if ball else None


def prdp_limit(method: PRDP, problem: GaussianProblem) -> Limit | None:
    """The path-KL optimum of the chain, for a linear reward: the residual of every pair is 0 there."""
    if not problem.linear or not (method.same_start or method.sampler.memoryless):
        return None
    kernels, start = problem.chain(method.sampler, method.grid)
    return path_kl_limit(kernels, start, problem.reward, method.beta)


def prdp_beta(method: PRDP, problem: GaussianProblem) -> float | None:
    """``beta``, under a memoryless sampler."""
    return method.beta if method.sampler.memoryless else None


def weighted_limit(method: RewardWeighted, problem: GaussianProblem) -> Limit | None:
    """The law that the solver samples from the reference, tilted, as a velocity that the solver samples again."""
    target = tilt(end_law(problem.model, method.sampler, method.grid), problem.reward, method.beta)
    assert isinstance(target, Gaussian)
    return Limit(end_law(target.model(problem.process), method.sampler, method.grid))


def weighted_beta(method: RewardWeighted, problem: GaussianProblem) -> float:
    """``beta``."""
    return method.beta
