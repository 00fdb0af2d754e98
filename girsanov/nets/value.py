r"""Value networks: a number for every state, ``V(t, x, c)``, around the reward of the denoised sample.

.. math:: V - m = c_{skip}(t)\, (RM(decode(\hat x_0)) - m) + c_{out}(t)\, \varsigma\, F_\phi(t, x, c)

``RM`` is the reward, ``x0_hat`` the reference's denoised prediction, the weights are a ``Skip``, F is a network of unit
scale whose last layer starts at zero. m and varsigma are mean and spread of the first rewards that were seen, so that
adding a constant to the reward adds it to V and nothing else. (F may be read as the published one, ``varsigma F + m (1
- c_skip) / c_out``.) A new V is the reward of the denoised sample, which is already close to the value of the
pretrained model, and its gradient flows through the denoiser and the decoder.

Reference: Zhao et al. 2025, arXiv:2502.01819, Eq. 20.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from girsanov.errors import GirsanovError
from girsanov.nets.embed import Embedding, Even, zeroed
from girsanov.nets.mlp import Block
from girsanov.nets.precondition import clock
from girsanov.nets.skip import Skip, TemperedSkip
from girsanov.precision import as_wide
from girsanov.predictions import scale
from girsanov.processes import Process
from girsanov.settings import Count, Natural, Positive, settings
from girsanov.types import Cond


class Value(nn.Module):
    """``V(x, t, cond, reward of the denoised sample)``.

    Args:
        net: F, ``net(x [B, *D], t [B], cond) -> [B]``.
        skip: the weights.
        process: whose times t are.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, net: nn.Module, skip: Skip, process: Process) -> None:
        super().__init__()
        self.net, self.skip, self.process = net, skip, process
        self.learned = nn.Parameter(torch.tensor(skip.start)) if skip.start else None
        self.register_buffer("loc", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def calibrate(self, rewards: Tensor) -> None:
        """Sets m and varsigma to mean and standard deviation of rewards [B]; those that are not finite are left out."""
        kept = as_wide(rewards[rewards.isfinite()])
        if len(kept) > 1:
            self.loc.fill_(float(kept.mean()))
            self.scale.fill_(max(float(kept.std(correction=0)), 1e-6 * (1 + abs(float(kept.mean())))))

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None, reward: Tensor | None = None) -> Tensor:
        """Values [B] in the dtype of x.

        Args:
            x: states, [B, *D].
            t: times, [] or [B].
            cond: conditions.
            reward: ``RM(decode(x0_hat))`` [B]; not read by a skip that does not use it.

        Raises:
            GirsanovError: F returns another shape than [B], or the reward is missing.
        """
        learned = x.new_zeros(0) if self.learned is None else self.learned
        c_skip, c_out = (v.to(x) for v in self.skip(t, self.process(t), learned))
        found = self.net(x, t.to(x).expand(len(x)), cond)
        check_values(found, len(x))
        value = self.loc + c_out * self.scale * found
        if not self.skip.uses_reward:
            return value
        if reward is None:
            raise GirsanovError("this value leans on the reward of the denoised sample: pass reward=RM(x0_hat) [B]")
        return value + c_skip * (reward.to(x) - self.loc)


def check_values(values: Tensor, n: int) -> None:
    """Raises GirsanovError unless a value network returned one number a sample."""
    got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if got != [n]:
        raise GirsanovError(
            f"the value network returned {got} for {n} samples: it must return one number a sample, of shape [{n}] "
            "(squeeze a last dimension of 1)"
        )


class ScalarNet(ABC):
    """What a network of one number a sample is built from."""

    @abstractmethod
    def build(self, shape: tuple[int, ...], process: Process, seed: int = 0) -> nn.Module:
        """``F(x [B, *shape], t [B], cond) -> [B]``; the same seed gives the same weights."""


@settings
class ScalarMLPConfig(ScalarNet):
    """A residual MLP on the state at unit scale.

    Attributes:
        width, blocks, embed: sizes, as in ``MLPConfig``.
        classes, vector: what conditions there are, as in ``NetConfig``; without them V is one for all prompts.
        data_std: standard deviation of the data.
    """

    width: Count = 128
    blocks: Natural = 2
    embed: Even = 64
    classes: Natural = 0
    vector: Natural = 0
    data_std: Positive = 1.0

    def build(self, shape: tuple[int, ...], process: Process, seed: int = 0) -> nn.Module:
        """The network, zero at first."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return ScalarMLP(self, shape, process)


class ScalarMLP(nn.Module):
    """The residual MLP of ``MLP`` with one output."""

    def __init__(self, config: ScalarMLPConfig, shape: tuple[int, ...], process: Process) -> None:
        super().__init__()
        self.process, self.data_std = process, config.data_std
        self.embedding = Embedding(config.embed, config.classes, config.vector)
        self.inlet = nn.Linear(math.prod(shape), config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.embed) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.outlet = zeroed(nn.Linear(config.width, 1))

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """One number for each x [B, *D] at t [B]: [B]."""
        c = self.process(t)
        size = ((c.alpha * self.data_std) ** 2 + c.sigma**2).rsqrt()
        e = F.silu(self.embedding(clock(c, self.data_std).to(x.dtype), cond))
        h = self.inlet((x * scale(size, x)).flatten(1))
        for block in self.blocks:
            h = block(h, e)
        return self.outlet(F.silu(self.norm(h))).squeeze(1)


class ValueDesign(ABC):
    """What a value is built from.

    Attributes:
        skip: how it leans on the reward of the denoised sample.
    """

    skip: Skip

    @abstractmethod
    def build(self, shape: tuple[int, ...], process: Process) -> Value:
        """A new value for data of this shape."""


@dataclass(frozen=True)
class DenoisedReward(ValueDesign):
    """A skip around a network.

    Attributes:
        skip: the weights.
        net: F.
        seed: of its weights.
    """

    skip: Skip = TemperedSkip()
    net: ScalarNet = ScalarMLPConfig()
    seed: int = 0

    def build(self, shape: tuple[int, ...], process: Process) -> Value:
        """The value."""
        return Value(self.net.build(shape, process, self.seed), self.skip, process)


SCALARS: dict[str, type[ScalarNet]] = {"mlp": ScalarMLPConfig}
"""Every network of one number a sample by name."""

VALUES: dict[str, type[ValueDesign]] = {"denoised-reward": DenoisedReward}
"""Every value by name."""
