r"""Preferences that are no reward: losses and exact iterations whose end is a Nash equilibrium.

With ``P(y > y')`` any preference (cycles allowed) and a reference mu, the regularised game has the payoff ``P(pi > pi')
- beta KL(pi || mu) + beta KL(pi' || mu)`` and one equilibrium, ``log pi* = log mu + P(. > pi*) / beta + c``.

*Nash-MD* (exact, tabular): play against the mixture ``pi^mu ~ pi^{1 - eta beta} mu^{eta beta}``,

.. math:: \log\pi_{t+1}(y) = (1 - \eta\beta) \log\pi_t(y) + \eta\beta \log\mu(y) + \eta P(y > \pi_t^\mu) + c

whose last iterate converges, at the rate 1/T with ``eta_t = 2 / (beta (t + 2))``; a constant eta ends O(eta) beside the
equilibrium (it solves ``beta log(pi / mu) = P(. > pi^mu) + c``). *Nash-MD-PG*: for y drawn from the policy and ``w =
P(y > y')``, y' from ``pi^{1 - lambda} mu^lambda`` (no gradient through it),

.. math:: L = - sg\big[ w - \tfrac12 - \beta D(y) \big] \log\pi(y), \qquad D = \log\pi - \log\mu

because ``grad KL(pi || mu) = E_pi[D grad log pi]``. *SPPO* regresses on the same signal, against the last iterate:

.. math:: L = \sum_k \big( D(y_k) - \eta (w_k - \tfrac12) \big)^2

its minimum over free log-ratios is the multiplicative-weights step ``pi_t exp(eta P) / Z`` with ``log Z`` replaced by
``eta / 2``, right to first order in eta. A pair without win probabilities is taken as (1, 0).

References: Munos et al. 2023, arXiv:2312.00886, Eqs. 5 to 9; Wu et al. 2024, arXiv:2405.00675, Eq. 3.5.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.preferences.base import Loss
from girsanov.preferences.records import Compared
from girsanov.preferences.scores import Score


def geometric_mixture(log_pi: Tensor, log_mu: Tensor, share: float) -> Tensor:
    """``log`` of ``pi^{1 - share} mu^share / Z`` over the last dimension: a table, or next-token laws."""
    return ((1 - share) * log_pi + share * log_mu).log_softmax(-1)


def nash_md_step(log_pi: Tensor, log_mu: Tensor, wins: Tensor, eta: float, beta: float) -> Tensor:
    """The next ``log pi`` [K] of exact Nash-MD; ``wins[i, j] = P(i > j)``, [K, K]."""
    mixed = geometric_mixture(log_pi, log_mu, eta * beta)
    return (mixed + eta * wins @ mixed.exp()).log_softmax(-1)


def equilibrium_gap(log_pi: Tensor, log_mu: Tensor, wins: Tensor, beta: float) -> Tensor:
    """How far ``log pi`` [K] is from its own best answer, ``max |log pi - log mu - P(. > pi) / beta - c|``, []."""
    best = (log_mu + wins @ log_pi.exp() / beta).log_softmax(-1)
    return (log_pi - best).abs().max()


def _win_probabilities(batch: Compared) -> Tensor:
    if batch.wins is not None:
        return batch.wins.to(batch.logp.dtype)
    return (batch.signs > 0).to(batch.logp.dtype)


@dataclass(frozen=True, kw_only=True)
class SPPO(Loss):
    """``sum_k (D(y_k) - eta (w_k - 1/2))^2``; the reference is the last iterate."""

    eta: float = 10.0

    def rows(self, batch: Compared) -> Tensor:
        """The squared errors of all items."""
        gap = Score(beta=1.0).log_ratio(batch) - self.eta * (_win_probabilities(batch) - 0.5)
        return torch.where(batch.there, gap.square(), torch.zeros_like(gap)).sum(1)


@dataclass(frozen=True, kw_only=True)
class NashMDPG(Loss):
    """``-sg[w - 1/2 - beta D] log pi``, the mean over a prompt's own samples; its gradient is what counts."""

    beta: float = 0.1

    def rows(self, batch: Compared) -> Tensor:
        """The score-function surrogate."""
        signal = _win_probabilities(batch) - 0.5 - self.beta * Score(beta=1.0).log_ratio(batch)
        loss = torch.where(batch.there, -signal.detach() * batch.logp, torch.zeros_like(batch.logp))
        return loss.sum(1) / batch.there.sum(1)
