r"""CPG: the policy gradient of continuous time, one update a batch.

.. math:: L = - E \sum_k w_k [ \log \pi(a_k | X_k)\, A_k + \gamma H(\pi(\cdot | X_k)) ], \qquad A = q + \gamma H

Symbols: w weights of the discounted occupation time, q advantage rate, gamma entropy weight, H entropy of the policy.
Reference: Zhao et al. 2023, arXiv:2305.18901 (CPG). The published form has ``q - gamma log pi - gamma`` as the weight
of the score; its ``-log pi`` is integrated here (``agents/base.py``), and the ``- gamma`` averages to nothing.
"""

from dataclasses import dataclass

from girsanov.control.agents.base import Agent, AgentBatch
from girsanov.errors import GirsanovError
from girsanov.methods.base import Chunk, State
from girsanov.policy import Policy
from girsanov.types import Batch


@dataclass(frozen=True, kw_only=True)
class CPG(Agent):
    """The policy gradient itself. Its limit is the optimum of the chain with ``TD`` or ``Centred`` rates."""

    def anchor(self, policy: Policy, batch: Batch, state: State) -> Batch:
        """Raises GirsanovError: after an update the batch is of another policy."""
        raise GirsanovError("CPG takes one update a batch: set train.epochs=1 and train.minibatches=1, or use cppo")

    def objective(self, policy: Policy, batch: AgentBatch, state: State) -> Chunk:
        """Less the score-function surrogate."""
        law = self.law(policy, batch)
        log_prob = law.log_prob(batch.a.flatten(0, 1)).view_as(batch.weight)
        entropy = law.entropy().view_as(batch.weight)
        gain = log_prob * batch.advantage + self.environment.entropy * entropy
        loss = -(batch.weight * gain).sum(1).mean()
        return Chunk(loss, {"entropy": (self.density(batch.weight) * entropy.detach()).sum(1).mean()})
