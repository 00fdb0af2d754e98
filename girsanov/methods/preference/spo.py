r"""SPO: at every step, candidates from the same state are compared by a preference model that knows the step.

From one state ``x_t`` draw k candidates ``x_s``; a step-aware preference model V(x, s) ranks them; the best and the
worst are a pair when their softmax probabilities differ by more than a threshold; a random candidate goes on. The pair
costs

.. math:: L = - \log \sigma\Big( \beta \log \mathrm{clip}(\rho^w, 1 \pm c) - \beta \log \mathrm{clip}(\rho^l, 1 \pm c)
    \Big)

with ratios to the reference. Both actions answer for the same state, so what comes later does not blur the comparison:
against D3PO, credit falls on steps. The network is asked once a state, not once a candidate.

*The preference model* learns along (published: trained beforehand on human choices). Samples of a group are noised with
one time and one noise, and compared by Bradley and Terry's law with the probability that their rewards give,

.. math:: L_V = - p \log \sigma(V_1 - V_2) - (1 - p) \log \sigma(V_2 - V_1), \qquad p = \sigma((r_1 - r_2) / T)

Shared noise leaves ``x_1 - x_2 = \alpha (x_0^1 - x_0^2)``: for a linear reward ``a^T x`` the minimum is ``V = a^T x /
(\alpha T)`` for every pair. A new V is constant, so no pair passes the threshold and the policy waits until V has
learned.

Reference: Liang et al. 2024, arXiv:2406.04314, algorithm 1 and its code (beta 10, clip 0.1, k = 4, threshold 0.3, from
step 4 of 20).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.base import Chunk, State, Turn
from girsanov.methods.forward.times import UniformTimes
from girsanov.methods.online import WALK
from girsanov.methods.policy_gradient.batch import Scored
from girsanov.methods.preference.base import RENOISE, pair_metrics, plain
from girsanov.methods.preference.candidates import StepPairs, candidates, judged, step_pairs
from girsanov.methods.preference.groups import partners, total
from girsanov.methods.preference.noised import Noised
from girsanov.methods.preference.paths import clipped, log_ratios, needs_density
from girsanov.methods.states import KeepsStates
from girsanov.models import Shared
from girsanov.nets.value import ScalarMLPConfig, ScalarNet, check_values
from girsanov.policy import Policy
from girsanov.precision import as_wide
from girsanov.preferences.pairs import PairLoss
from girsanov.preferences.records import Compared
from girsanov.preferences.scores import Score
from girsanov.reductions import Reduction
from girsanov.rewards.base import Reward
from girsanov.rewards.scores import submit
from girsanov.samplers.base import Sampler
from girsanov.samplers.gddim import GDDIM
from girsanov.types import Batch, Cond, Prompts, wide


@dataclass(frozen=True, kw_only=True)
class SPO(KeepsStates):
    """Step-aware preference optimisation.

    Attributes:
        reward: what the preference model learns from; no gradient is asked of it.
        sampler, grid: of the rollout; stochastic and single-step.
        k: candidates a state.
        skip: share of the steps at the noise end that are not trained.
        threshold: least difference of the softmax probabilities of best and worst.
        beta, clip: scale of the log-ratios, range of the ratios.
        reduce: how log-ratios are added up over the data.
        temperature: T of the preference model's labels.
        net: V.
    """

    reward: Reward
    sampler: Sampler = GDDIM(1.0)
    grid: Grid = field(default_factory=lambda: Grid.uniform(20))
    k: int = 4
    skip: float = 0.2
    threshold: float = 0.3
    beta: float = 10.0
    clip: float = 0.1
    reduce: Reduction = "mean"
    temperature: float = 1.0
    net: ScalarNet = ScalarMLPConfig()
    _nets: dict[str, nn.Module] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        needs_density("SPO", self.sampler)
        shares = 0 <= self.threshold < 1 and 0 <= self.skip < 1 and 0 < self.clip < 1
        if self.k < 2 or not (self.beta > 0 and self.temperature > 0 and shares):
            raise GirsanovError(
                "SPO needs k of at least 2, beta and temperature above 0, clip in (0, 1), threshold, skip in [0, 1), "
                f"not {self.k}, {self.beta}, {self.temperature}, {self.clip}, {self.threshold} and {self.skip}"
            )

    def setup(self, policy: Policy) -> State:
        """A new preference model in the policy's dtype."""
        net = self.net.build(policy.model.shape, policy.model.process)
        self._nets["preference_model"] = net.to(policy.device, policy.dtype)
        return {}

    def modules(self) -> dict[str, nn.Module]:
        """The preference model, once ``setup`` has made it."""
        return dict(self._nets)

    def score(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """V [N] of states x [N, *D] at times t."""
        found = self._nets["preference_model"](x, t.to(x).expand(len(x)), cond)
        check_values(found, len(x))
        return found

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """One rollout with k candidates a step; their pairs by V; pairs of ends by the reward."""
        model = policy.view("current", "rollout")
        x_T = self.begin(policy, model, self.grid, turn.noise(prompts.ids), prompts.cond)
        path = candidates(model, self.sampler, self.grid, x_T, prompts, turn, self.k, WALK)
        x0, first = path.x0[:: self.k], int(self.skip * len(self.grid))
        pending = submit(self.reward, model.decode(x0), prompts)
        if not path.trainable or path.trainable[-1].step.i < first:
            raise GirsanovError(f"no step from {first} on draws noise: lower skip, or take more steps")
        base, parts = Shared(policy.view("reference", "train"), 2), list[Scored]()
        for tr in path.trainable:
            if tr.step.i >= first:
                v = self.score(wide(tr.x_s), tr.step.s, tr.cond or prompts.cond)
                parts.append(step_pairs(tr, self.sampler, v, self.k, self.threshold).with_reference(base))
        reward = total(self.reward, pending, turn)
        other, mask = partners(reward, prompts.group)
        law = (UniformTimes(), 0, 1, self.grid)
        ends = Noised.of(policy.model, torch.stack([x0, x0[other]], 1), turn.noise(prompts.ids, RENOISE), law, plain)
        scores = torch.stack([reward, reward[other]], 1).nan_to_num()
        return StepPairs(reward, mask, tuple(parts), ends, scores, prompts.cond)

    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """One chunk a step, and one of the preference model."""
        assert isinstance(batch, StepPairs)
        loss = PairLoss(score=Score(self.beta, reference=0.0))
        for part in batch.parts:
            assert part.mask is not None
            kept = part.mask[::2]
            model = Shared(policy.view("current", "train"), 2)  # both rows of a pair start from one state
            ratio = clipped(log_ratios(part, model, self.reduce), self.clip)
            rows = loss.rows(Compared(ratio))
            metrics = pair_metrics(self.beta * (ratio[:, 0] - ratio[:, 1])) | {"pairs": as_wide(kept).mean()}
            yield Chunk(torch.where(kept, rows, torch.zeros_like(rows)).mean() / len(batch.parts), metrics)
        b, ends = len(batch), batch.ends
        each = batch.cond.take(torch.arange(b, device=batch.cond.index.device).repeat_interleave(2))
        v = self.score(ends.x.flatten(0, 1), ends.t.repeat_interleave(2), each).view(b, 2)
        rows, metrics = judged(v, batch.scores.to(v), self.temperature)
        yield Chunk(torch.where(batch.mask, rows, torch.zeros_like(rows)).mean(), metrics, "preference_model")
