r"""Is a function the value of the policy that made these paths? A martingale test.

With running rewards c, ``M_k = V(x_k) + sum_{j < k} c_j`` is a martingale if and only if V is the policy's value: the
increments ``D_k = V(x_{k+1}) - V(x_k) + c_k`` have mean 0 given ``x_k``. So they are orthogonal to every test function
of ``x_k``; taken here are 1 and the standardised ``V(x_k)``,

.. math:: z_{kj} = \sqrt{n}\, \frac{mean(D_k \phi_j)}{std(D_k \phi_j)}, \qquad
          z = \frac{\sum_{kj} z_{kj}^2 - m}{\sqrt{2 m}}

Under the hypothesis every ``z_kj`` is standard normal as n grows and increments of different steps are uncorrelated, so
z is about standard normal too (m terms). The paths must be fresh: V was fitted to others. A large z says that n is
enough to see an error, not that the error is large; ``drift`` says how large: the root mean square over steps of
``mean(D_k phi_j)``, in standard deviations of the reward.

Reference: Jia & Zhou 2022, arXiv:2108.06655 (martingale conditions of a value).
"""

import torch
from torch import Tensor

from girsanov.precision import as_wide


def martingale_test(values: Tensor, running: Tensor) -> dict[str, float]:
    """``martingale_z`` and ``martingale_drift`` of values [n, K + 1] and running rewards [n, K]; 0 below 3 paths."""
    v, c = as_wide(values), as_wide(running)
    n, spread = len(v), v[:, -1].std(correction=0)
    if n < 3 or not float(spread) > 0:
        return {"martingale_z": 0.0, "martingale_drift": 0.0}
    increments = v.diff(dim=1) + c
    level = v[:, :-1] - v[:, :-1].mean(0)
    sizes = level.std(0, correction=0)
    level = torch.where(sizes > 1e-9 * spread, level / sizes, torch.zeros_like(level))
    terms = torch.cat([increments, increments * level], 1)
    mean, std = terms.mean(0), terms.std(0)
    live = std > 1e-9 * spread  # a step that nothing moves (or a value that is constant) has no test
    z = (n**0.5 * mean[live] / std[live]).square()
    m = max(1, len(z))
    return {
        "martingale_z": float((z.sum() - len(z)) / (2 * m) ** 0.5),
        "martingale_drift": float(mean.square().mean().sqrt() / spread),
    }
