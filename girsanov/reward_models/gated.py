r"""Several objectives and a gate that weighs them by prompt (ArmoRM's form).

Stage 1: ratings g of R objectives are regressed on features phi of prompt and answer,

.. math:: W = \arg\min \sum_i | W^T \phi_i + b - g_i |^2 + \lambda |W|^2,

in closed form, objective by objective over the items that have it (NaN is no rating). Stage 2: W is frozen, and a gate
of the *prompt's* features is trained on preferences:

.. math:: r = e^{\tau} \sum_j \mathrm{softmax}(gate(x))_j \; (W^T \phi + b)_j, \qquad L = -\log \sigma(r_w - r_l)

Between the stages what an objective shares with verbosity can be taken out (``debias.py``), which leaves W a table of
weights. The scale ``exp(tau)`` is learned too: weights that sum to 1 could not meet the odds of the labels otherwise.
The bias b cancels between two answers to a prompt, as the gate is the same for both.

Reference: Wang et al. 2024, arXiv:2406.12845, sections 3.1 and 3.2.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from girsanov.errors import GirsanovError
from girsanov.reward_models.scorers import ScorerConfig
from girsanov.settings import Count, Natural, settings
from girsanov.types import Cond


class Gated(nn.Module):
    """``(phi [N, F], cond["prompt"] [N, P]) -> scores [N]``."""

    weight: Tensor
    bias: Tensor

    def __init__(self, features: int, prompt: int, objectives: int, hidden: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(features, objectives))
        self.register_buffer("bias", torch.zeros(objectives))
        layers = [nn.Linear(prompt, objectives)]
        if hidden:
            layers = [nn.Linear(prompt, hidden), nn.SiLU(), nn.Linear(hidden, objectives)]  # type: ignore[list-item]
        self.gate = nn.Sequential(*layers)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def ratings(self, phi: Tensor) -> Tensor:
        """Predicted ratings [N, R]."""
        return phi @ self.weight + self.bias

    def weights(self, prompt: Tensor) -> Tensor:
        """What each objective counts for a prompt, [N, R]; they sum to 1."""
        return self.gate(prompt).softmax(1)

    def forward(self, x: Tensor, cond: Cond | None = None) -> Tensor:
        """Scores [N]."""
        if cond is None or "prompt" not in cond.tables:
            raise GirsanovError('a gate reads features of the prompt: give conditions with a table "prompt"')
        return self.log_scale.exp() * (self.weights(cond["prompt"]) * self.ratings(x)).sum(1)

    @torch.no_grad()
    def fit_ratings(self, phi: Tensor, ratings: Tensor, ridge: float = 1e-3) -> None:
        """Stage 1: features [n, F] and ratings [n, R], NaN where there is none.

        Raises GirsanovError if an objective has no rating at all.
        """
        x = torch.cat([phi, torch.ones_like(phi[:, :1])], 1).double()
        penalty = ridge * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        penalty[-1, -1] = 0.0
        for j in range(ratings.shape[1]):
            known = ratings[:, j].isfinite()
            if not bool(known.any()):
                raise GirsanovError(f"objective {j} has no rating: leave it out")
            a, g = x[known], ratings[known, j].double()
            solved = torch.linalg.lstsq(a.T @ a + penalty, (a.T @ g).unsqueeze(1)).solution[:, 0]
            self.weight[:, j] = solved[:-1].to(self.weight)
            self.bias[j] = solved[-1].to(self.bias)

    @torch.no_grad()
    def subtract(self, lam: Tensor, weight: Tensor, bias: Tensor) -> None:
        """``r_i' = r_i - lam_i v`` with lam [R] and ``v = weight . phi + bias``, weight [F]: see ``debias.py``."""
        self.weight -= weight.to(self.weight).unsqueeze(1) * lam.to(self.weight)
        self.bias -= bias.to(self.bias) * lam.to(self.bias)


@settings
class GatedConfig(ScorerConfig):
    """Sizes of a gated reward model.

    Attributes:
        features, prompt: sizes of the features of an item and of its prompt.
        objectives: R.
        hidden: width of the gate; 0 makes it linear.
    """

    features: Count
    prompt: Count
    objectives: Count
    hidden: Natural = 32

    reads_prompt: ClassVar[bool] = True

    def one(self) -> nn.Module:
        """The network."""
        return Gated(self.features, self.prompt, self.objectives, self.hidden)
