r"""Trees: paths of a group share their beginnings and split at some steps, so that credit falls on steps.

A node's reward is fused from those of its children (the leaves' are the scores), so two children of one node differ by
what the split decided, and the steps near the root are sampled once for all their leaves. Advantages are those of the
nodes of one depth within their group. With w the weights of the children of a node,

.. math:: R_{node} = \sum_{child} w_{child} R_{child}, \qquad w = \tfrac1n \;\text{(mean)} \quad\text{or}\quad
    w = \mathrm{softmax}(\log \pi(child | node))\;\text{(likelihood, averaged over the data dimensions)}

Pruning leaves the rollout and the advantages alone and takes nodes out of the loss: the width of a tree here (a node is
trained if a leaf below it is kept), its depth by the method's ``steps`` (``PrunedSteps``).

Reference: Li et al. 2025, arXiv:2509.06040 and its code (BranchGRPO; splits at steps 0, 3, 6, 9 of 20, two children
each; fusion by the mean or by child-edge log-probs; best leaf of each branch, or best and worst of all).
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.clock import phase
from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.kernels import Kernel
from girsanov.methods.advantages.base import Advantage
from girsanov.methods.advantages.groups import prompt_keys
from girsanov.methods.base import State, Turn
from girsanov.methods.online import WALK
from girsanov.methods.policy_gradient.nodes import EveryLeaf, Fusion, MeanFusion, Width, fuse
from girsanov.methods.policy_gradient.paths import Paths, Signal
from girsanov.models import ModelLike
from girsanov.precision import onto
from girsanov.rewards.base import Reward
from girsanov.rewards.scores import Pending, submit, total, weights
from girsanov.rollout import rollout
from girsanov.samplers.base import Sampler
from girsanov.types import Prompts, Step, Trajectory


@dataclass(frozen=True)
class Trees(Paths):
    """Paths that split into ``fan`` children at the given places of the grid (shares of its steps).

    A tree has the largest power of ``fan`` that divides the group size as its leaves, so small groups split at the
    first places only; a group may hold several trees. A place listed twice splits twice.

    Attributes:
        splits, fan: where, and into how many.
        fusion: how the rewards of children make that of their node.
        width: which leaves are trained on.
    """

    splits: tuple[float, ...] = (0.0, 0.15, 0.3, 0.45)
    fan: int = 2
    fusion: Fusion = MeanFusion()
    width: Width = EveryLeaf()

    def __post_init__(self) -> None:
        if self.fan < 2 or not all(0 <= s < 1 for s in self.splits):
            raise GirsanovError(f"a tree splits into 2 or more at shares of the grid in [0, 1), not {self}")

    def leaves(self, prompts: Prompts) -> tuple[int, int]:
        """Leaves of a tree, and how many of the splits are used."""
        size = math.gcd(*torch.unique_consecutive(prompts.group, return_counts=True)[1].tolist())
        depth = 0
        while depth < len(self.splits) and size % self.fan ** (depth + 1) == 0:
            depth += 1
        return self.fan**depth, depth

    def sample(
        self, model: ModelLike, sampler: Sampler, grid: Grid, x_T: Tensor, prompts: Prompts, reward: Reward,
        turn: Turn, micro_batch: int | None,
    ) -> tuple[Trajectory, Pending]:  # fmt: skip
        """One rollout of all trees: leaf j is request j, a node draws from the stream of its first leaf."""
        if micro_batch is not None:
            raise GirsanovError("trees are rolled out at once: leave rollout_micro_batch at None")
        leaves, depth = self.leaves(prompts)
        at = Counter(int(s * len(grid)) for s in self.splits[:depth])

        def grow(rows: int, before: int) -> Tensor:
            return torch.arange(rows, device=x_T.device).repeat_interleave(self.fan ** at[before])

        roots = torch.arange(0, len(prompts), leaves, device=x_T.device)[grow(len(prompts) // leaves, 0)]
        source = turn.noise(prompts.ids, WALK)

        def branch(step: Step, x_s: Tensor) -> Tensor:
            return grow(len(x_s), step.i + 1)

        def noise(like: Tensor) -> Tensor:
            return source.every(len(prompts) // len(like)).normal(tuple(like.shape[1:]), like.dtype)

        start, cond = x_T[roots], prompts.cond.take(roots.to(prompts.cond.index.device))
        path = rollout(model, sampler, grid, start, cond, noise=noise, branch=branch)
        with phase("decode"):
            decoded = model.decode(path.x0)
        return path, submit(reward, decoded, prompts)

    def rewards(self, scores: Tensor, path: Trajectory) -> dict[int, Tensor]:
        """Number of nodes of a depth -> their rewards [n, R], from the leaves' scores [leaves, R]."""
        found, density = {len(scores): scores}, dict[int, Tensor]()
        for tr in path.trainable:  # the first step after a split decides between the siblings
            n = len(tr.x_s)
            if n not in density:
                density[n] = Kernel(tr.mean, tr.std, tr.stochastic).log_prob(tr.x_s, reduce="mean").to(scores)
        below = len(scores)
        for n in sorted(density, reverse=True):
            if n != below:
                siblings = density.get(below, scores.new_zeros(below)).view(n, -1)
                found[n], below = fuse(found[below], self.fusion(siblings)), n
        return found

    def credit(
        self, reward: Reward, pending: Pending, advantage: Advantage, prompts: Prompts, path: Trajectory,
        rows: Sequence[int], state: State, turn: Turn,
    ) -> tuple[Tensor, Tensor, list[Signal]]:  # fmt: skip
        """The advantage of each node's reward among the nodes of its depth; nodes without a kept leaf are masked."""
        scores = onto(pending.result().detach(), turn.device)
        key = prompt_keys(prompts) if advantage.by_prompt else prompts.group
        leaves, _ = self.leaves(prompts)
        summed = total(reward, scores).view(-1, leaves)
        kept, found = self.width(summed, self.fan).flatten(), dict[int, Signal]()
        for n, nodes in self.rewards(scores, path).items():
            a, mask = advantage(nodes, key.view(n, -1)[:, 0], state, turn, weights(reward))
            mask = mask & kept.view(n, -1).any(1).to(mask.device)
            found[n] = (torch.where(mask, a, torch.zeros_like(a)), mask)
        return summed, found[len(prompts)][1].view(-1, leaves), [found[n] for n in rows]
