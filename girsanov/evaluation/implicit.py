r"""The reward that a tuned model stands for, and how much of the true one it has recovered.

A preference method never names a reward; its model implies one. With squared denoising errors e of the network's own
prediction, summed over the data,

.. math:: s(x) = - \tfrac12\, E_{t, \epsilon}\big[ e_\theta(x_t) - e_{ref}(x_t) \big]

is what the losses compare, with ``B(t) = 1``: the same noise for both models and for all items of a prompt. Against a
true reward r on items that nobody trained on, within prompts: the correlation of ``s_1 - s_2`` with ``r_1 - r_2``, and
the share of pairs that s orders as r does. Both ignore the scale of s, and a constant of the prompt cancels.

An annotator of temperature T orders a pair as r does with probability ``sigma(|r_1 - r_2| / T)``: its mean says how
much of the truth the labels held (``agreement``).

Reference: Rafailov et al. 2023, arXiv:2305.18290, section 5; Wallace et al. 2023, arXiv:2311.12908.
"""

import math

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.forward.times import UniformTimes
from girsanov.methods.preference.base import plain
from girsanov.methods.preference.noised import Noised
from girsanov.models import ModelLike
from girsanov.noise import Noise
from girsanov.precision import as_wide
from girsanov.types import Cond

STREAM = 7301  # noise of the implicit reward


@torch.no_grad()
def implicit_reward(
    tuned: ModelLike,
    base: ModelLike,
    items: Tensor,
    cond: Cond,
    *,
    draws: int = 16,
    seed: int = 0,
    ids: Tensor | None = None,
) -> Tensor:
    """s of items [N, K, *D] with conditions of N prompts, float64 [N, K].

    Args:
        tuned, base: the two models.
        items: in model space.
        cond: of the prompts.
        draws: times a prompt, spread over [0, 1].
        seed: key of times and noise.
        ids: numbers of the rows [N], which belong to the key; 0 .. N - 1 by default.
    """
    rows = torch.arange(len(items)) if ids is None else ids
    source = Noise(seed, 0, rows, STREAM, items.device)
    total = as_wide(items.new_zeros(items.shape[:2]))
    for k in range(draws):
        draw = Noised.of(tuned, items, source, (UniformTimes(), k, draws, Grid.uniform(1000)), plain)
        total = total - 0.5 * as_wide(draw.look(tuned, cond).error - draw.look(base, cond).error)
    return total / draws


def recovery(implicit: Tensor, reward: Tensor) -> dict[str, float]:
    """Correlation of the gaps and share of pairs in order, of implicit and true rewards [N, 2], with standard errors.

    Rows whose reward is not finite are left out, and ties of the true reward say nothing of the order. A constant
    implicit reward (the untuned model's) has correlation 0 and orders half of the pairs. Raises GirsanovError if fewer
    than three pairs are left.
    """
    keep = reward.isfinite().all(1)
    s, r = ((v[keep][:, 0] - v[keep][:, 1]).cpu().double() for v in (implicit, reward))
    if len(s) < 3:
        raise GirsanovError(f"a correlation needs at least three pairs with finite rewards, not {len(s)}")
    still = float(s.std()) == 0 or float(r.std()) == 0
    rho = 0.0 if still else float(torch.corrcoef(torch.stack([s, r]))[0, 1])
    told = r != 0
    right = ((s.sign() * r.sign())[told] + 1) / 2
    share = float(right.mean()) if len(right) else 0.5
    return {
        "recovered": rho,
        "recovered_se": (1 - rho**2) / math.sqrt(len(s) - 1),
        "ordered": share,
        "ordered_se": math.sqrt(share * (1 - share) / max(1, len(right))),
    }


def agreement(reward: Tensor, temperature: float) -> float:
    """How often an annotator of this temperature orders two items of rewards [N, 2] as the reward does."""
    gap = as_wide((reward[:, 0] - reward[:, 1]).abs())
    gap = gap[gap.isfinite() & (gap > 0)]
    if temperature == 0:
        return 1.0
    return float(torch.sigmoid(gap / temperature).mean()) if len(gap) else 0.5
