r"""Diffusion-DPO: the classifier of preferences whose logit is a difference of denoising errors.

For a pair ``(x^w, x^l)`` noised with the *same* t and eps, and squared errors e of the network's own prediction (eps,
velocity, ...) summed over d dimensions,

.. math:: h = -\tfrac{B(t)}{2} \big[ (e^w - e^l)_\theta - (e^w - e^l)_{ref} \big], \qquad L = -E \log \sigma(h)

At ``theta = ref`` the loss is log 2. ``B`` is published as a constant times the mean error (``weights.py``, which also
derives the weight that makes the optimum the tilted law). The two images are one network pass, and so are the two of
the reference.

Reference: Wallace et al. 2023, arXiv:2311.12908, Eq. 14 and its code.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.base import Chunk, Data, Method, State, Turn
from girsanov.methods.forward.times import Times, UniformTimes
from girsanov.methods.preference.weights import ConstantWeight, PairWeight
from girsanov.models import ModelLike
from girsanov.pairs import PairPrompts
from girsanov.policy import Policy
from girsanov.predictions import combine, row
from girsanov.reductions import square_distance
from girsanov.types import Batch, Cond, Prompts

RENOISE = 3  # noise stream of the draws


@dataclass(frozen=True)
class NoisedPairs:
    """A draw of a batch of pairs: noised images and targets of both, times [B], B(t) [B]."""

    winner: Tensor
    loser: Tensor
    winner_target: Tensor
    loser_target: Tensor
    t: Tensor
    weight: Tensor

    def take(self, index: Tensor) -> "NoisedPairs":
        """The chosen pairs."""
        parts = (self.winner, self.loser, self.winner_target, self.loser_target, self.t, self.weight)
        return NoisedPairs(*(p[index] for p in parts))

    def margin(self, model: ModelLike, cond: Cond) -> Tensor:
        """``e^w - e^l`` of a model, summed over the data, [B]; one network pass."""
        n = torch.arange(len(self.t), device=cond.index.device)
        p = model(torch.cat([self.winner, self.loser]), torch.cat([self.t, self.t]), cond.take(torch.cat([n, n])))
        good, bad = p.chunk(2)
        return square_distance(good, self.winner_target) - square_distance(bad, self.loser_target)


@dataclass(frozen=True)
class PairBatch(Batch):
    """Times [B] of the first draw, conditions, and the draws."""

    first: Tensor
    cond: Cond
    draws: tuple[NoisedPairs, ...]


@dataclass(frozen=True, kw_only=True)
class DiffusionDPO(Method):
    """Direct preference optimisation on pairs of samples; never touches a sampler.

    Attributes:
        weight: B(t).
        times: at which times pairs are noised.
        draws: how often each pair is noised.
        grid: the times that ``GridTimes`` draws from.
    """

    weight: PairWeight = ConstantWeight()
    times: Times = UniformTimes()
    draws: int = 1
    grid: Grid = field(default_factory=lambda: Grid.uniform(1000))

    data: ClassVar[Data] = "pairs"

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """Noises every pair with a time and a noise of its own, the same for both images."""
        if not isinstance(prompts, PairPrompts):
            raise GirsanovError("Diffusion-DPO learns from pairs: give a Pairs source, for example simulate_pairs(...)")
        model, source, draws = policy.model, turn.noise(prompts.ids, RENOISE), list[NoisedPairs]()
        winner, loser = (x.to(policy.device, policy.dtype) for x in (prompts.chosen, prompts.rejected))
        for k in range(self.draws):
            t = self.times(source.uniform(), k, self.draws, self.grid)
            eps, c = source(winner), model.process(t)
            ab = row(c, model.prediction)
            x_w, x_l = (combine(x, eps, c.alpha, c.sigma) for x in (winner, loser))
            target_w, target_l = (combine(x, eps, *ab) for x in (winner, loser))
            weight = self.weight(c, model.prediction, winner[0].numel())
            draws.append(NoisedPairs(x_w, x_l, target_w, target_l, t, weight))
        return PairBatch(draws[0].t, prompts.cond, tuple(draws))

    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """One chunk a draw."""
        assert isinstance(batch, PairBatch)
        for draw in batch.draws:
            with torch.no_grad():
                base = draw.margin(policy.view("reference", "train"), batch.cond)
            moved = draw.margin(policy.view("current", "train"), batch.cond) - base
            logit = -0.5 * draw.weight * moved
            metrics = {"accuracy": (logit.detach() > 0).double().mean(), "logit": logit.detach().mean()}
            yield Chunk(-logsigmoid(logit).mean() / len(batch.draws), metrics)
