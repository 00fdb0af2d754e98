"""Training in the bench: the same optimiser and budget for every method, on noise drawn for the whole batch at once.

The run's loop (``train.py``) draws every sample's noise from a generator of its own, so that processes and
micro-batches change nothing. One process with one batch needs none of that, and a generator a sample costs more than
these networks do.
"""

import copy
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.bench.nets import Correction
from girsanov.bench.problems import GROUP
from girsanov.errors import GirsanovError
from girsanov.items import ItemPrompts, labelled, ranked
from girsanov.methods.base import Method, Turn
from girsanov.noise import Noise, generator
from girsanov.pairs import PairPrompts
from girsanov.policy import Policy
from girsanov.problems.laws import Mixture
from girsanov.rewards.base import Reward
from girsanov.types import Cond, Prompts


@dataclass(frozen=True)
class Budget:
    """What every method gets: iterations, samples an iteration, samples a group, Adam's rate (cosine to 0).

    Methods that end nowhere are stopped at a KL. They take ``free_lr``, so that this falls after many small updates and
    not after one or two, whose direction would be Adam's more than the method's.
    """

    iterations: int = 300
    batch: int = 4096
    group: int = GROUP
    lr: float = 0.1
    free_lr: float = 0.005


FULL = Budget()
FAST = Budget(iterations=80, batch=1024)
"""The budget of the table, and of a coarse check."""


class BatchNoise(Noise):
    """Noise of a whole batch from one generator; samples with the same id (a group's, say) get the same numbers."""

    def __init__(self, seed: int, iteration: int, ids: Tensor, stream: int = 0) -> None:
        self.generator = generator((seed, iteration, stream))
        self.rows = torch.unique(ids, return_inverse=True)[1]

    def every(self, stride: int) -> "BatchNoise":
        """Noise for every ``stride``-th sample, from the same generator."""
        part = copy.copy(self)
        part.rows = torch.unique(self.rows[::stride], return_inverse=True)[1]
        return part

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """The next standard normal numbers, [B, *shape]."""
        return torch.randn(self.distinct, *shape, dtype=dtype, generator=self.generator)[self.rows]

    def uniform(self, shape: tuple[int, ...] = (), dtype: torch.dtype | None = None) -> Tensor:
        """The next numbers uniform on [0, 1), [B, *shape]; float64 if no other is asked for."""
        return torch.rand(self.distinct, *shape, dtype=dtype or torch.float64, generator=self.generator)[self.rows]

    @property
    def distinct(self) -> int:
        """The number of different ids."""
        return int(self.rows.max()) + 1


@dataclass(frozen=True)
class BatchTurn(Turn):
    """An iteration with noise for whole batches."""

    def noise(self, ids: Tensor, stream: int = 0) -> BatchNoise:
        """Noise for a batch; another stream for another purpose."""
        return BatchNoise(self.seed, self.index, ids, stream)


@dataclass(frozen=True)
class Requests:
    """Unconditional requests, with fresh samples of the exact law, judged, for the methods that want them.

    Attributes:
        law: of the samples.
        reward: the annotator's taste (Bradley-Terry at temperature 1).
        budget: sizes.
        data: what the method takes: "prompts", "pairs", "labels" or "lists" (of four).
    """

    law: Mixture
    reward: Reward
    budget: Budget
    data: str

    def batch(self, seed: int, iteration: int) -> Prompts:
        """The requests of an iteration."""
        n = self.budget.batch
        ids = torch.arange(n)
        cond = Cond({}, torch.zeros(n, dtype=torch.int64))
        plain = Prompts(cond, ids, ids // self.budget.group)
        if self.data == "prompts":
            return plain
        g = generator((seed, iteration, 17))
        if self.data != "pairs":
            return self.judged(plain, g)
        one, two = self.law.sample(n, g), self.law.sample(n, g)
        odds = torch.sigmoid(self.reward(one, plain) - self.reward(two, plain))
        first = (torch.rand(n, generator=g, dtype=torch.float64) < odds).unsqueeze(1)
        return PairPrompts(
            cond, ids, plain.group, chosen=torch.where(first, one, two), rejected=torch.where(first, two, one)
        )

    def judged(self, plain: Prompts, g: torch.Generator) -> Prompts:
        """Single samples that are called good or bad, or four that are ranked."""
        k = 1 if self.data == "labels" else 4
        many = self.law.sample(k * len(plain), g)
        score = self.reward(many, plain.take(torch.arange(len(plain)).repeat_interleave(k))).view(-1, k).double()
        items, key = many.unflatten(0, (-1, k)), int(torch.randint(1 << 30, (), generator=g))
        found = (labelled if k == 1 else ranked)(plain.cond, items, score, 1.0, len(plain), key)
        return ItemPrompts(plain.cond, plain.ids, plain.group, items=found.items, score=found.score, sign=found.sign)


@dataclass(frozen=True)
class Trained:
    """What training left.

    Attributes:
        path: weights of the correction before each iteration and at the end, iterations + 1 tensors.
        calls: forward passes of the network, each on a batch.
        seconds: of training.
    """

    path: list[Tensor]
    calls: int
    seconds: float


def train_one(method: Method, policy: Policy, requests: Requests, seed: int, lr: float) -> Trained:
    """Trains the policy with the method, at a rate.

    Raises GirsanovError if a loss is not finite.
    """
    budget, state = requests.budget, method.setup(policy)
    extra = [p for m in method.modules().values() for p in m.parameters()]
    optimizer = torch.optim.Adam([*policy.parameters(), *extra], lr=lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, budget.iterations)
    net, began = policy.net, time.perf_counter()
    assert isinstance(net, Correction)
    net.calls, path = 0, [net.weight.detach().clone()]
    for i in range(budget.iterations):
        turn = BatchTurn(seed, i, budget.iterations)
        with torch.no_grad():
            batch = method.collect(policy, requests.batch(seed, i), state, turn)
        for chunk in method.losses(policy, batch, state):
            chunk.loss.backward()
        if not all(bool(p.grad.isfinite().all()) for p in policy.parameters() if p.grad is not None):
            raise GirsanovError(f"the gradient of {type(method).__name__} is not finite at iteration {i}")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        method.after_update(policy, state, turn)
        path.append(net.weight.detach().clone())
    return Trained(path, net.calls, time.perf_counter() - began)
