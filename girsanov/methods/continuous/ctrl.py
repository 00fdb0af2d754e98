r"""Score as action (CTRL): continuous-time reinforcement learning of a sampler, with a value network.

The network's prediction is the action of a controlled diffusion, the price of an action is its share of the path KL,
the reward comes at the end, and ``V(t, x)`` is what a state is worth under the policy. An iteration rolls the policy
out, lets a critic look at every state (``critic.py``), regresses V on returns (``returns.py``) and updates the policy
by the closed-form advantage climbed (``updates.py``), clipped ratios (``ratio.py``) or clipped displacements
(``few_step.py``). Every batch tests whether V is a martingale on fresh paths (``martingale.py``).

The gradient form with a path KL has one fixed point, the path-KL optimum of the chain on its grid (the tilted law as
steps shrink, with memoryless noise), if V can be the value of the policy. The others need a price to have one.

Cost an iteration: N passes of the policy, N of the reference (with a VJP each where the gradient form leans on the
reward), N forward and N trained passes of V, a trained pass of the policy a trained step. ``pretrain`` iterations train
the value alone; with ``train.epochs`` above 1 both networks take several steps a batch.

Reference: Zhao et al. 2025, arXiv:2502.01819; Zhao et al. 2024, arXiv:2409.08400.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from girsanov.distributed import held
from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.base import Chunk, State, Turn
from girsanov.methods.continuous.batch import Part, ValuedPaths
from girsanov.methods.continuous.observe import observe
from girsanov.methods.continuous.price import PathKLPrice, Price
from girsanov.methods.continuous.returns import LambdaReturn, ValueTarget
from girsanov.methods.continuous.trust import TrustRegion, moving
from girsanov.methods.continuous.updates import GradientForm, PolicyUpdate
from girsanov.methods.policy_gradient.steps import AllSteps, Steps
from girsanov.methods.states import KeepsStates
from girsanov.nets.value import DenoisedReward, Value, ValueDesign
from girsanov.policy import Policy
from girsanov.rewards.base import Reward
from girsanov.samplers.base import AffineSampler
from girsanov.samplers.gddim import GDDIM
from girsanov.types import Batch, Kernel, Prompts, wide


@dataclass(frozen=True, kw_only=True)
class CTRL(KeepsStates):
    """Score as action for any sampler of one stage.

    Attributes:
        reward: any score; the gradient form differentiates it if the value leans on it.
        sampler, grid: of the rollout; deterministic ones take an energy price and the gradient or few-step form.
        value: the value network.
        target: what the value is regressed on.
        price: of an action, or None.
        update: how the policy learns from the value.
        trust: penalty between the updates of a batch, or None.
        steps: which of the steps that can be trained are.
        pretrain: iterations in which only the value learns.
        rollout_micro_batch: samples rolled out at a time, each lot scored while the next is rolled out; None is all.
    """

    reward: Reward
    sampler: AffineSampler = GDDIM(1.0)
    grid: Grid = field(default_factory=lambda: Grid.uniform(20))
    value: ValueDesign = DenoisedReward()
    target: ValueTarget = LambdaReturn()
    price: Price | None = PathKLPrice()
    update: PolicyUpdate = GradientForm()
    trust: TrustRegion | None = None
    steps: Steps = AllSteps()
    pretrain: int = 0
    rollout_micro_batch: int | None = None
    _nets: dict[str, Value] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        name = type(self.sampler).__name__
        if not isinstance(self.sampler, AffineSampler) or not self.sampler.single_step:
            raise GirsanovError(
                f"score as action needs a sampler of one stage and one step and {name} is not one: use GDDIM(eta=1.0), "
                "or Euler() with an energy price; a tuned model is sampled with any solver"
            )
        if not self.sampler.stochastic and (self.update.needs_density or self.trust is not None):
            raise GirsanovError(f"ratios and trust regions need a density, {name} draws no noise: use GDDIM(eta=1.0)")
        if not self.update.trains(self.sampler.stochastic, self.price) and self.price is not None:
            raise GirsanovError(f"the path KL of {name} is infinite: use price={{kind: energy}}, or GDDIM(eta=1.0)")
        self.update.check(self.price)
        if self.update.needs_gradient and self.value.skip.uses_reward and not self.reward.differentiable:
            raise GirsanovError(
                f"this value leans on the reward of the denoised sample, its gradient is needed and "
                f"{self.reward.name!r} has none: use value.skip=none, so that the network carries it, or update=ratio"
            )
        if self.pretrain < 0:
            raise GirsanovError(f"pretrain = {self.pretrain} must be at least 0")

    def setup(self, policy: Policy) -> State:
        """A new value network in the policy's dtype; a copy of the policy of the last rollout for a trust region."""
        value = self.value.build(policy.model.shape, policy.model.process)
        self._nets["value"] = value.to(policy.device, policy.dtype)
        if self.trust is not None:
            policy.keep_copy("old")
        return {} if self.trust is None else moving(self.trust)

    def modules(self) -> dict[str, nn.Module]:
        """The value network, once ``setup`` has made it."""
        return dict(self._nets)

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """One rollout, looked at by the critic."""
        return observe(self, self._nets["value"], policy, prompts, state, turn)

    def kernel(self, policy: Policy, part: Part) -> Kernel:
        """The kernel of the policy at a trained step."""
        return self.sampler.kernel(policy.view("current", "train"), part.tr.asked, part.tr.step, part.tr.cond)[0]

    @torch.no_grad()
    def anchor(self, policy: Policy, batch: Batch, state: State) -> Batch:
        """The micro-batch with the means before the first update, if the update or the trust region compares them."""
        assert isinstance(batch, ValuedPaths)
        if not (self.update.needs_old or self.trust is not None):
            return batch
        return replace(batch, parts=tuple(p.with_old(self.kernel(policy, p).mean) for p in batch.parts))

    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """One chunk a trained step, one a state of the value."""
        assert isinstance(batch, ValuedPaths)
        slope = self._trusted(policy, batch, state)
        if not batch.parts:  # pretraining: every process gives every parameter a gradient, or none does
            yield Chunk(torch.stack([(0 * held(p)).sum() for p in policy.parameters()]).sum())
        for part in batch.parts:
            kernel = self.kernel(policy, part)
            loss, metrics = self.update.loss(kernel, part, self.price)
            if slope is not None and part.old is not None:
                moved = kernel.kl(part.old)
                loss, metrics["trust_kl"] = loss + slope * moved, moved.detach().mean()
            yield Chunk(loss.mean() / len(batch.parts), metrics)
        value = self._nets["value"]
        for point in batch.points:
            clean = None if point.reward is None else point.reward.nan_to_num()
            kept = point.target.isfinite() & (clean is None or clean == point.reward)
            error = value(wide(point.x), point.t, batch.cond, clean) - point.target.nan_to_num().to(wide(point.x))
            loss = torch.where(kept, (error / value.scale).square(), 0 * error).mean()
            yield Chunk(loss / len(batch.points), module="value")

    @torch.no_grad()
    def _trusted(self, policy: Policy, batch: ValuedPaths, state: State) -> Tensor | None:
        """What each sample's KL is multiplied with [B]: a pass over the steps finds how far the sample has come."""
        if self.trust is None or not batch.parts or batch.parts[0].old is None:
            return None
        moved = [self.kernel(policy, p).kl(p.old) for p in batch.parts if p.old is not None]
        return self.trust.slope(float(state["trust_weight"]), torch.stack(moved).sum(0))
