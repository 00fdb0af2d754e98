r"""By how much an advantage scales the reward: the effective beta is ``beta / c``.

The gradient of a policy whose samples x_i have independent noise z_i is, by Stein's identity, ``E[A_i z_i] =
E[dA_i/dr_i dr_i/dz_i]``: an advantage acts as the reward times ``c = E[dA_i / dr_i]``. With n samples a group and the
reward's standard deviation s,

===================  ============================  ================================================================
advantage            c                             exact for
===================  ============================  ================================================================
leave-one-out        1                             any reward
group-centred        ``1 - 1/n``                   any reward
global-std           ``(1 - 1/n) / (s + eps)``     any reward, large batches
batch-normalised     ``1 / (s + eps)``             any reward, large batches
group-normalised     ``k_n / (s + eps)``           normal rewards; others to leading order in 1/n
running-buffer       ``k_N / (s + eps)``           the same, with the buffer's size N, once it is full
===================  ============================  ================================================================

``k_n = (1 - 2/n) E[s / s_g] = sqrt(2/n) Gamma(n/2) / Gamma((n-1)/2)`` is the mean of a group's standard deviation in
units of s (about ``1 - 3/(4n)``). Holding the advantage within +-limit multiplies c by the probability of ``|A| <
limit``. The std is that of the policy's own rewards, so a limit solves ``beta_eff = beta / c(s(beta_eff))``.
"""

import math
from collections.abc import Callable

from girsanov.methods.advantages import (
    Advantage,
    BatchNormalised,
    Clipped,
    GlobalStd,
    GroupCentred,
    GroupNormalised,
    LeaveOneOut,
    PerReward,
    RunningBuffer,
)
from girsanov.problems.laws import Gaussian
from girsanov.problems.rewards import QuadraticReward


def reward_std(law: Gaussian, reward: QuadraticReward) -> float:
    """Standard deviation of the reward: ``sqrt(g^T S g + tr((A S)^2) / 2)``, ``g = b - A mean``."""
    slope, AS = reward.b - reward.A @ law.mean, reward.A @ law.cov
    return float((slope @ law.cov @ slope + 0.5 * (AS @ AS).trace()).sqrt())


def mean_group_std(n: int | None) -> float:
    """k_n, the mean over groups of n standard normals of their std (dividing by n); 1 for None."""
    return 1.0 if n is None else math.sqrt(2 / n) * math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2))


def signal_scale(advantage: Advantage, n: int | None, within: float, overall: float) -> float | None:
    """c of an advantage in groups of n, or None where it is not known.

    Args:
        advantage: the advantage.
        n: samples a group; None is a large one.
        within: std of the reward within a group.
        overall: std of the reward over all samples.
    """
    kept = 1.0 if n is None else 1 - 1 / n
    match advantage:
        case LeaveOneOut():
            return 1.0
        case GroupCentred():
            return kept
        case GlobalStd(eps):
            return kept / (overall + eps)
        case BatchNormalised(eps):
            return 1 / (overall + eps)
        case GroupNormalised(eps):
            return mean_group_std(n) / (within + eps)
        case RunningBuffer(size, _, eps):
            return mean_group_std(size) / (overall + eps)
        case PerReward(inner):
            return signal_scale(inner, n, within, overall)
        case Clipped(inner, limit):
            c = signal_scale(inner, n, within, overall)
            return None if c is None else c * math.erf(limit / (math.sqrt(2) * c * within))
        case _:
            return None


def settled(law_at: Callable[[float], Gaussian], scale_of: Callable[[Gaussian], float | None]) -> float | None:
    """The c that its own law has: ``c = scale_of(law_at(c))`` by iteration in log c; None if ``scale_of`` knows none.

    ``law_at(c)`` is where a policy ends whose reward counts c times.
    """
    c = scale_of(law_at(1.0))
    for _ in range(200):
        if c is None:
            return None
        new = scale_of(law_at(c))
        if new is not None and math.isclose(new, c, rel_tol=1e-13):
            return new
        c = None if new is None else math.sqrt(c * new)
    return c
