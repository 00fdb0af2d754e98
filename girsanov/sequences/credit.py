r"""Credit: from rewards of completions to advantages of tokens.

==============  ==================================================  =============================================
credit          A_t                                                 method
==============  ==================================================  =============================================
outcome         that of the completion, the same for every token    GRPO, RLOO, P3O: any image advantage
greedy          ``R - R(greedy)``                                   ReMax
GAE             ``sum_l (gamma lambda)^l delta_{t+l}``              PPO; ``delta_t = r_t + gamma V_{t+1} - V_t``
whitened        another credit at mean 0 and std 1 over all tokens  PPO as it is run
==============  ==================================================  =============================================

The KL to the reference enters as a reward, ``-beta (log pi_old - log pi_ref)`` a token, the completion's own reward
stands at its last token: ``R = r - beta sum_t (log pi_old - log pi_ref)``. With ``E[R]`` as the objective and any
baseline that does not depend on the completion (greedy, leave-one-out, V), ``sum_t A_t grad log pi_t`` is unbiased for
the gradient of ``E[r] - beta KL(pi || pi_ref)``: the term that differentiates the KL's own integrand has mean 0.

References: Schulman et al. 2015, arXiv:1506.02438 (GAE); Li et al. 2023, arXiv:2310.10505 (ReMax); Ahmadian et al.
2024, arXiv:2402.14740 (RLOO); Shao et al. 2024, arXiv:2402.03300 (GRPO).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.advantages.base import Advantage, GroupNormalised
from girsanov.methods.base import State, Turn
from girsanov.precision import as_wide
from girsanov.sequences.records import Tokens


def shaped(tokens: Tokens, beta: float) -> Tensor:
    """Rewards of tokens [B, L]: their own, the completion's at its last token, minus beta times the log-ratio."""
    r = torch.where(tokens.last, tokens.reward.unsqueeze(1), torch.zeros_like(tokens.old))
    if tokens.token_reward is not None:
        r = r + tokens.token_reward
    if beta:
        r = r - beta * (tokens.old - tokens.need("ref", "the reference's log-probs for its KL"))
    return torch.where(tokens.mask, r, torch.zeros_like(r)).detach()


class Credit(ABC):
    """Rewards of tokens to advantages."""

    @abstractmethod
    def __call__(
        self, tokens: Tokens, rewards: Tensor, state: State, turn: Turn
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Advantages [B, L], which completions carry a signal (bool [B]), and targets of the value head [B, L]."""


@dataclass(frozen=True)
class Outcome(Credit):
    """An advantage of completions, for each of their tokens."""

    advantage: Advantage = GroupNormalised()

    def __call__(
        self, tokens: Tokens, rewards: Tensor, state: State, turn: Turn
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The completion's advantage [B, L], its mask [B], no targets."""
        a, mask = self.advantage(tokens.summed(rewards), tokens.group, state, turn)
        return a.unsqueeze(1).expand_as(rewards), mask, None


@dataclass(frozen=True)
class Greedy(Credit):
    """The completion's reward minus that of the greedy completion, which costs one more sample and no network."""

    def __call__(
        self, tokens: Tokens, rewards: Tensor, state: State, turn: Turn
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """``R - R(greedy)`` [B, L]."""
        a = tokens.summed(rewards) - tokens.need("greedy", "the reward of the greedy completions")
        return a.unsqueeze(1).expand_as(rewards), torch.ones_like(a, dtype=torch.bool), None


@dataclass(frozen=True)
class GAE(Credit):
    """Generalised advantage estimation with a value head."""

    gamma: float = 1.0
    lam: float = 0.95

    def __post_init__(self) -> None:
        if not (0 <= self.gamma <= 1 and 0 <= self.lam <= 1):
            raise GirsanovError(f"gamma and lambda lie in [0, 1], not {self.gamma} and {self.lam}")

    def __call__(
        self, tokens: Tokens, rewards: Tensor, state: State, turn: Turn
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Advantages [B, L] and targets ``A + V``."""
        v = torch.where(tokens.mask, tokens.need("old_value", "values of a value head"), torch.zeros_like(rewards))
        a, run, after = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
        for t in range(rewards.shape[1] - 1, -1, -1):  # tokens that do not count pass what comes after them on
            here = tokens.mask[:, t]
            step = rewards[:, t] + self.gamma * after - v[:, t] + self.gamma * self.lam * run
            run = torch.where(here, step, run)
            after = torch.where(here, v[:, t], after)
            a[:, t] = torch.where(here, run, torch.zeros_like(run))
        return a.detach(), torch.ones_like(run, dtype=torch.bool), (a + v).detach()


@dataclass(frozen=True)
class Whitened(Credit):
    """Another credit brought to mean 0 and std 1 over all tokens of the batch, over all processes."""

    inner: Credit = GAE()
    eps: float = 1e-8

    def __call__(
        self, tokens: Tokens, rewards: Tensor, state: State, turn: Turn
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """``(A - mean) / (std + eps)``; the targets stay."""
        a, mask, target = self.inner(tokens, rewards, state, turn)
        kept = as_wide(a[tokens.mask])
        n, total = turn.reduce.mean(torch.stack([kept.new_tensor(float(len(kept))), kept.sum()]))
        mean = total / n
        std = (turn.reduce.mean((kept - mean).square().sum()) / n).sqrt()
        white = ((a - mean) / (std + self.eps)).to(a.dtype)
        return torch.where(tokens.mask, white, torch.zeros_like(a)), mask, target


CREDITS: dict[str, type[Credit]] = {"outcome": Outcome, "greedy": Greedy, "gae": GAE, "whitened": Whitened}
"""Every credit by name."""


def rto_rewards(dpo: Tensor, logp: Tensor, ref: Tensor, beta1: float, beta2: float) -> Tensor:
    r"""RTO's token rewards [B, L]: ``beta1 log(pi_dpo / pi_ref) - beta2 log(pi / pi_ref)`` of the sampled tokens.

    Their sum is DPO's implicit reward of the completion, less a KL: the same optimum, with credit token by token.
    The reward of the whole completion is added at its end by ``shaped``.

    Reference: Zhong et al. 2024, arXiv:2404.18922, Eq. 4.3.
    """
    return (beta1 * (dpo - ref) - beta2 * (logp - ref)).detach()
