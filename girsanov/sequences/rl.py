r"""Policy gradients on sequences: one composition of the parts that the image methods use.

.. math:: L = avg\big[ \ell(\log\rho_k, A_k) \big] + b\, avg\big[ k_3 \big] + c\, avg\big[ (V - target)^2 / 2 \big]

ell is a surrogate of ``girsanov/surrogates.py`` (K = tokens, completions or pairs), the advantages are those of
``girsanov/methods/advantages``, or a value head's. The KL to the reference is a reward (``beta``), or the penalty

.. math:: k_3 = \frac{\pi_{ref}}{\pi} - \log\frac{\pi_{ref}}{\pi} - 1

a token (``kl``), never negative, whose mean under pi is ``KL(pi || pi_ref)``; its gradient at samples of pi, taken
pathwise, has the mean ``grad KL(pi_ref || pi)`` (to first order the same). The value loss is clipped as in PPO.

``signals`` is computed once an iteration, ``loss`` at every update.

*P3O on and off policy* (Fakoor et al.; the survey describes it where it cites Wu et al.):

.. math:: L = - E_{on}[A \log\pi] - E_{off}\big[ sg(\min(\rho, c))\, A \log\pi \big] + \lambda E_{off}[\log\beta_{off} -
\log\pi]

with ``rho = pi / beta_off`` of a token, ``c = ESS = (sum rho)^2 / (N sum rho^2)`` and ``lambda = 1 - ESS``: data that
is far off policy is clipped hard and holds the policy near its behaviour.

References: Ouyang et al. 2022, arXiv:2203.02155 (PPO for language); Li et al. 2023, arXiv:2310.10505 (ReMax); Ahmadian
et al. 2024, arXiv:2402.14740 (RLOO); Shao et al. 2024, arXiv:2402.03300, Eqs. 3 and 4 (GRPO, k3); Wu et al. 2023,
arXiv:2310.00212 (P3O, pairwise); Fakoor et al. 2019, arXiv:1905.01756, Eq. 8 (P3O, on and off); Zhong et al. 2024,
arXiv:2404.18922 (RTO).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.methods.advantages.base import GroupNormalised, LeaveOneOut
from girsanov.methods.base import State, Turn
from girsanov.sequences.credit import GAE, Credit, Greedy, Outcome, Whitened, shaped
from girsanov.sequences.levels import (
    Averaging,
    Level,
    PairLevel,
    SequenceLevel,
    SequenceMean,
    SequenceSum,
    TokenLevel,
    TokenMean,
)
from girsanov.sequences.records import Tokens
from girsanov.surrogates import Clip, ScoreFunction, Surrogate, ratio_of


@dataclass(frozen=True)
class Signals:
    """What is worked out once an iteration: advantages [B, L], which completions count [B], value targets [B, L], and
    how many tokens a completion of the batch has on average, over all processes ([])."""

    advantage: Tensor
    mask: Tensor
    target: Tensor | None = None
    per: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class SequenceRL:
    """The composition.

    Attributes:
        credit: rewards to advantages.
        surrogate: clip, score function, ...
        level: of what the ratio is taken.
        average: of the terms of completions and tokens.
        beta: weight of the KL as a reward.
        kl: weight of the k3 penalty.
        value_weight, value_clip: of the value loss; c and the range of the clip.
    """

    credit: Credit = Outcome(GroupNormalised())
    surrogate: Surrogate = Clip(0.2, reduce="sum")
    level: Level = TokenLevel()
    average: Averaging = SequenceMean()
    beta: float = 0.0
    kl: float = 0.0
    value_weight: float = 0.1
    value_clip: float = 0.2

    def signals(self, tokens: Tokens, state: State, turn: Turn) -> Signals:
        """Advantages and targets of sampled completions; all statistics over batch and processes are here."""
        with torch.no_grad():
            per = turn.reduce.mean(tokens.mask.sum(1).to(tokens.old.dtype).mean())
            return Signals(*self.credit(tokens, shaped(tokens, self.beta), state, turn), per=per)

    def loss(self, tokens: Tokens, signals: Signals) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, scalar, and numbers to log."""
        log_ratio, advantage, mask = self.level(tokens, signals.advantage, signals.mask)
        terms, silent = self.surrogate(log_ratio, advantage, mask)
        if log_ratio.shape == tokens.mask.shape:
            total = self.average(terms, tokens.mask, signals.per)
        else:
            total = self.average(terms, torch.ones_like(mask))
        rho = ratio_of(log_ratio.detach())[mask]
        metrics = {"clip_fraction": silent, "ratio": rho.mean() if len(rho) else silent.new_ones(())}
        if self.kl:
            gap = tokens.need("ref", "the reference's log-probs for its KL") - tokens.logp
            k3 = torch.where(tokens.mask, ratio_of(gap) - gap - 1, torch.zeros_like(gap))
            metrics["kl"] = tokens.summed(k3.detach()).mean()
            total = total + self.kl * self.average(k3, tokens.mask, signals.per)
        if signals.target is not None:
            value = self._value_loss(tokens, signals.target, signals.per)
            metrics["value_loss"] = value.detach()
            total = total + self.value_weight * value
        return total, metrics

    def _value_loss(self, tokens: Tokens, target: Tensor, per: Tensor | None = None) -> Tensor:
        """``max((V - target)^2, (clip(V) - target)^2) / 2``, averaged as the policy's terms."""
        v, old = tokens.need("value", "values of a value head"), tokens.need("old_value", "values of a value head")
        held = old + (v - old).clamp(-self.value_clip, self.value_clip)
        worst = torch.maximum((v - target).square(), (held - target).square()) / 2
        return self.average(torch.where(tokens.mask, worst, torch.zeros_like(worst)), tokens.mask, per)


def effective_sample_size(ratio: Tensor) -> Tensor:
    """``(sum rho)^2 / (N sum rho^2)`` in (0, 1], []."""
    return ratio.sum().square() / (ratio.square().sum() * ratio.numel())


def on_off_loss(
    on: Tokens, on_signals: Signals, off: Tokens, off_signals: Signals, size: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Fakoor's P3O: the on-policy part, the clipped off-policy part and the KL to the behaviour, averaged over tokens.

    Args:
        on: completions of the policy at hand.
        on_signals: their advantages.
        off: completions of an older policy, whose log-probs are ``off.old``.
        off_signals: their advantages.
        size: the effective sample size, where these are part of a larger batch; from these by default.
    """
    rho = ratio_of((off.logp - off.old).detach())
    size = effective_sample_size(rho[off.mask]) if size is None else size

    def mean(values: Tensor, tokens: Tokens, signals: Signals) -> Tensor:
        return TokenMean()(torch.where(tokens.mask, values, torch.zeros_like(values)), tokens.mask, signals.per)

    fresh = -mean(on_signals.advantage * on.logp, on, on_signals)
    stale = -mean(torch.minimum(rho, size) * off_signals.advantage * off.logp, off, off_signals)
    hold = mean(off.old - off.logp, off, off_signals)
    return fresh + stale + (1 - size) * hold, {"ess": size, "behaviour_kl": hold.detach()}


def ppo(beta: float = 0.05, clip: float = 0.2) -> SequenceRL:
    """PPO with a value head; the KL is a reward."""
    return SequenceRL(credit=Whitened(GAE()), surrogate=Clip(clip, reduce="sum"), average=TokenMean(), beta=beta)


def remax(beta: float = 0.05) -> SequenceRL:
    """ReMax: REINFORCE with the greedy completion as baseline."""
    return SequenceRL(
        credit=Greedy(), surrogate=ScoreFunction(), level=SequenceLevel(), average=SequenceSum(), beta=beta
    )


def rloo(beta: float = 0.05) -> SequenceRL:
    """RLOO: REINFORCE with the other samples' mean as baseline."""
    return SequenceRL(
        credit=Outcome(LeaveOneOut()),
        surrogate=ScoreFunction(),
        level=SequenceLevel(),
        average=SequenceSum(),
        beta=beta,
    )


def grpo(kl: float = 0.04, clip: float = 0.2) -> SequenceRL:
    """GRPO: group-normalised rewards, PPO's clip on tokens, k3 penalty."""
    return SequenceRL(credit=Outcome(GroupNormalised()), surrogate=Clip(clip, reduce="sum"), kl=kl)


def p3o(beta: float = 0.05, clip: float = 0.2) -> SequenceRL:
    """P3O (pairwise), every completion's ratio clipped."""
    return SequenceRL(
        credit=Outcome(LeaveOneOut()),
        surrogate=Clip(clip, reduce="sum"),
        level=SequenceLevel(),
        average=SequenceSum(),
        beta=beta,
    )


def p3o_joint(beta: float = 0.05, clip: float = 0.2) -> SequenceRL:
    """P3O (pairwise), the ratio of the pair clipped."""
    return SequenceRL(
        credit=Outcome(LeaveOneOut()),
        surrogate=Clip(clip, reduce="sum"),
        level=PairLevel(),
        average=SequenceSum(),
        beta=beta,
    )


def rto(clip: float = 0.2) -> SequenceRL:
    """RTO: PPO on DPO's token rewards (``Tokens.token_reward``, which hold the KL already) and the completion's own."""
    return SequenceRL(credit=Whitened(GAE()), surrogate=Clip(clip, reduce="sum"), average=TokenMean())


SEQUENCE_RL: dict[str, Callable[..., SequenceRL]] = {
    "ppo": ppo,
    "remax": remax,
    "rloo": rloo,
    "grpo": grpo,
    "p3o": p3o,
    "p3o-joint": p3o_joint,
    "rto": rto,
}
"""Every policy gradient on sequences by name; ``on_off_loss`` is P3O in its other reading."""
