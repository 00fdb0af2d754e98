r"""CPPO: proximal policy optimisation of continuous time.

.. math:: L = - E \sum_k w_k \Big[ \frac{\pi(a_k | X_k)}{\pi_{old}(a_k | X_k)} A_k + \gamma H(\pi(\cdot | X_k)) \Big]
    + C\, E_{x \sim \beta d} \sqrt{KL(\pi_{old} \| \pi)}, \qquad A = q + \gamma H_{old}

several updates a batch, after which C adapts (``trust.py``). The distance it adapts to is that of the policy before and
after the iteration at one state of each path, drawn from the occupation time.

Symbols: w weights of the discounted occupation time d, q advantage rate of the old policy, gamma entropy weight, H
entropy, C penalty weight. Reference: Zhao et al. 2023, arXiv:2305.18901 (CPPO).
"""

from dataclasses import dataclass, field

import torch

from girsanov.control.agents.base import Agent, AgentBatch
from girsanov.control.agents.trust import SqrtKL, TrustRegion
from girsanov.control.policies import actor_of
from girsanov.methods.base import Chunk, State, Turn
from girsanov.policy import Policy
from girsanov.types import Batch, Prompts


@dataclass(frozen=True, kw_only=True)
class CPPO(Agent):
    """Likelihood ratios and a penalty.

    Attributes:
        trust: the penalty and how its weight adapts.
    """

    trust: TrustRegion = field(default_factory=SqrtKL)

    def setup(self, policy: Policy) -> State:
        """The weight at its start, and the old policy."""
        policy.keep_copy("old")
        return {**super().setup(policy), "weight": self.trust.weight, "distance": 0.0, "at": None}

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> AgentBatch:
        """Adapts the weight to how far the last iteration went; then as every agent."""
        if state["at"] is not None:
            old, new = (actor_of(policy, self.environment, name)(state["at"]) for name in ("old", "current"))
            state["distance"] = float(turn.reduce.mean(self.trust.distance(old.kl(new)).mean()))
            state["weight"] = self.trust.adapted(state["weight"], state["distance"])
        policy.keep_copy("old")
        batch = super().collect(policy, prompts, state, turn)
        state["at"] = batch.at
        return batch

    def anchor(self, policy: Policy, batch: Batch, state: State) -> Batch:
        """The batch with the old law, in the layout of training."""
        assert isinstance(batch, AgentBatch)
        return self.with_old(policy, batch)

    def objective(self, policy: Policy, batch: AgentBatch, state: State) -> Chunk:
        """Less the ratio surrogate, plus the penalty."""
        law, a = self.law(policy, batch), batch.a.flatten(0, 1)
        old = batch.old or law.detach()
        ratio = (law.log_prob(a) - old.log_prob(a)).exp().view_as(batch.weight)
        entropy = law.entropy().view_as(batch.weight)
        gain = (batch.weight * (ratio * batch.advantage + self.environment.entropy * entropy)).sum(1).mean()
        distances = self.trust.distance(old.kl(law)).view_as(batch.weight)
        distance = (self.density(batch.weight) * distances).sum(1).mean()
        metrics = {
            "entropy": (self.density(batch.weight) * entropy.detach()).sum(1).mean(),
            "ratio_min": ratio.detach().min(),
            "ratio_max": ratio.detach().max(),
            "penalty": torch.as_tensor(state["weight"]),
            "distance": torch.as_tensor(state["distance"]),
        }
        return Chunk(-gain + state["weight"] * distance, metrics)
