"""The value along a sampled path: reference pass, reward of the denoised sample, V, its gradient and the price.

One pass of the reference a state serves the mean that a price compares with, the denoised sample that the value leans
on, and (backwards) the part of ``grad V`` that flows through the denoiser. At the end of the path the denoised sample
is the sample itself, whatever the last time of the grid is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.methods.continuous.batch import Seen
from girsanov.methods.continuous.price import Price
from girsanov.methods.differentiable import scores
from girsanov.models import ModelLike
from girsanov.nets.value import Value
from girsanov.precision import as_wide, onto
from girsanov.rewards.base import Reward
from girsanov.rewards.scores import submit, total
from girsanov.samplers.base import AffineSampler
from girsanov.types import Kernel, Prompts, Transition


@dataclass(frozen=True)
class Critic:
    """What judges a path.

    Attributes:
        value: V.
        reward: RM.
        price: of the action, or None.
        sampler: of the path.
        reference: the untuned model, guided as in the rollout.
        prompts: the B requests.
        gradient: whether ``grad V`` is wanted.
    """

    value: Value
    reward: Reward
    price: Price | None
    sampler: AffineSampler
    reference: ModelLike
    prompts: Prompts
    gradient: bool

    def step(self, tr: Transition, wanted: bool) -> tuple[Seen, Kernel]:
        """The step as it was seen, and the kernel it was drawn from with its gain; ``wanted``: its gradient too."""
        grad = self.gradient and wanted
        with torch.set_grad_enabled(grad):
            x = tr.asked.detach().requires_grad_(grad)
            kernel = self.sampler.kernel(self.reference, x, tr.step, self.prompts.cond)[0]
            clean = kernel.x0 if self.value.skip.uses_reward else None
            reward, value, gradient = self.judge(x, tr.step.t, clean, grad)
        drawn = Kernel(tr.mean, tr.std, tr.stochastic, kernel.gain)
        mean = kernel.mean.detach()
        paid = as_wide(x.new_zeros(len(x)))
        if self.price is not None:
            paid = self.price.charge(drawn, tr.step, tr.mean, mean)
        return Seen(tr, mean, reward, value, gradient, -paid), drawn

    def end(self, x0: Tensor, reward: Tensor, wanted: bool) -> Seen:
        """The end of the path, whose value is its reward [B]; its gradient is that of V at t = 0."""
        gradient = None
        if self.gradient and wanted:
            with torch.enable_grad():
                x = x0.detach().requires_grad_(True)
                clean = x if self.value.skip.uses_reward else None
                gradient = self.judge(x, torch.zeros((), dtype=torch.float64), clean, True)[2]
        nothing = as_wide(x0.new_zeros(len(x0)))
        return Seen(None, None, None, reward, gradient, nothing)

    def judge(
        self, x: Tensor, t: Tensor, clean: Tensor | None, grad: bool
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Reward of the denoised sample, V and (if ``grad``) ``grad_x V`` at states x with a graph to ``clean``."""
        reward = None if clean is None else self.score(clean, grad)
        value = self.value(x, t, self.prompts.cond, reward)
        gradient = torch.autograd.grad(value.sum(), x)[0] if grad else None
        return None if reward is None else reward.detach(), value.detach(), gradient

    def score(self, clean: Tensor, grad: bool) -> Tensor:
        """``RM(decode(clean))`` [B], with its graph if asked for; NaN where a pool dropped a sample."""
        if grad:
            return scores(self.reward, self.reference, clean, self.prompts)
        found = submit(self.reward, self.reference.decode(clean), self.prompts).result().detach()
        return total(self.reward, onto(found, clean.device))
