r"""Rewards of single tokens: what RTO gets from a model that was tuned by DPO first.

.. math:: r_t = \beta_1 \log\frac{\pi_{dpo}(y_t | y_{<t})}{\pi_{ref}(y_t | y_{<t})}
    - \beta_2 \log\frac{\pi(y_t | y_{<t})}{\pi_{ref}(y_t | y_{<t})}

Their sum over a completion is DPO's implicit reward of it less the price of the KL (``rto_rewards``), so a policy
gradient with them has the optimum ``pi_ref (pi_dpo / pi_ref)^{beta1 / beta2}``: DPO's own model for ``beta1 = beta2``,
with credit token by token on the way. A reward of the whole completion (``reward``) is added at its end.

Reference: Zhong et al. 2024, arXiv:2404.18922, Eq. 4.3.
"""

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.language.base import LanguageMethod, reference_of
from girsanov.language.generation import Sampling
from girsanov.language.load import load_beside
from girsanov.language.model import LanguageModel
from girsanov.language.policy_gradient import LanguageRL, TokenReward
from girsanov.language.rewards import TextReward
from girsanov.language.tokens import Completions
from girsanov.policy import Policy
from girsanov.sequences import SEQUENCE_RL, rto_rewards
from girsanov.sharding import Sharding


class DPOModel(TokenReward):
    """RTO's token rewards.

    Args:
        model: the model tuned by DPO: folder of a run, folder or name of a model.
        beta1: weight of its log-ratio.
        beta2: weight of the policy's own.
    """

    def __init__(self, model: str | None = None, beta1: float = 0.1, beta2: float = 0.1) -> None:
        self.model, self.beta1, self.beta2 = model, beta1, beta2
        self.tuned: LanguageModel | None = None

    @classmethod
    def of(cls, tuned: LanguageModel, beta1: float = 0.1, beta2: float = 0.1) -> "DPOModel":
        """From a model at hand."""
        found = cls(None, beta1, beta2)
        found.tuned = tuned
        return found

    def prepare(self, policy: Policy) -> None:
        """Loads the model. Raises GirsanovError if there is none, or it has other tokens."""
        if self.tuned is not None:
            return
        if self.model is None:
            raise GirsanovError(
                "token rewards come from a model tuned by DPO: run --method dpo first, and give its folder with "
                "method.dpo_model=FOLDER"
            )
        own = policy.model
        dtype = next(p.dtype for p in policy.net.parameters() if p.is_floating_point())
        tuned = load_beside(self.model, own.encoder, dtype, chunk=own.net.chunk, packed=own.net.packed)
        if own.split:
            Sharding(tuned.net, policy.device)
        tuned.net.to(policy.device)
        self.tuned = LanguageModel(tuned.net, tuned.encoder, own.autocast)

    @torch.no_grad()
    def __call__(self, policy: Policy, rows: Completions, logp: Tensor) -> Tensor:
        """Token rewards [B, L]."""
        if self.tuned is None:
            self.prepare(policy)
        assert self.tuned is not None
        ref = reference_of(policy).token_logp(rows)
        return rto_rewards(self.tuned.token_logp(rows).to(logp), logp, ref, self.beta1, self.beta2)


TOKEN_REWARDS: dict[str, type[TokenReward]] = {"dpo-model": DPOModel}
"""Every reward of single tokens by name."""


def rto(
    *,
    reward: TextReward,
    dpo_model: str | None = None,
    beta1: float = 0.1,
    beta2: float = 0.1,
    clip: float = 0.2,
    sampling: Sampling | None = None,
    rollout_micro_batch: int | None = None,
) -> LanguageMethod:
    """RTO: PPO on DPO's token rewards, and the reward of the whole completion at its end.

    Args:
        reward: of whole completions; ``nothing`` leaves it out.
        dpo_model: the model tuned by DPO: folder of a run, folder or name of a model.
        beta1, beta2: weights of its log-ratio and of the policy's own; equal ones aim at the DPO model itself.
        clip: of the ratio.
        sampling, rollout_micro_batch: how completions are drawn.
    """
    return LanguageRL(
        rl=SEQUENCE_RL["rto"](clip),
        reward=reward,
        dense=DPOModel(dpo_model, beta1, beta2),
        sampling=sampling or Sampling(),
        rollout_micro_batch=rollout_micro_batch,
    )
