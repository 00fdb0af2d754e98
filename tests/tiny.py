"""A run of the smallest size that still has everything that moves: averaged weights, further networks, method state."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from girsanov.grids import Grid
from girsanov.methods.adjoint.ode import ODEAdjointMatching
from girsanov.methods.base import Chunk, Method, State, Turn
from girsanov.models import Model
from girsanov.nets import MLPConfig
from girsanov.policy import Policy
from girsanov.problems import LinearReward
from girsanov.processes import RectifiedFlow
from girsanov.prompts import ClassPrompts
from girsanov.train import Run, TrainConfig
from girsanov.types import Batch, Prompts

SETTINGS = {"iterations": 6, "lr": 1e-2, "ema": 0.9, "warmup": 2, "schedule": "cosine"}


def tiny_policy(dtype: torch.dtype = torch.float64) -> Policy:
    """A two-dimensional flow model with a small network."""
    net = MLPConfig(shape=(2,), width=8, blocks=1, embed=8).build(0).to(dtype)
    with torch.no_grad():  # the last layer starts at zero; give it something to differentiate
        for i, p in enumerate(net.parameters()):
            p.add_(0.1 * torch.sin(torch.arange(p.numel(), dtype=dtype) + i).view_as(p))
    return Policy(Model(net, RectifiedFlow(), "velocity", (2,)))


def tiny_prompts(batch: int = 8) -> ClassPrompts:
    """Requests for a batch of samples in groups of two."""
    return ClassPrompts(num_classes=4, groups_per_batch=batch // 2, group_size=2)


def tiny_run(
    method: Method | None = None,
    accelerator: object = None,
    batch: int = 8,
    dtype: torch.dtype = torch.float64,
    **train: object,
) -> Run:
    """The run; ``train`` replaces settings."""
    method = method or ODEAdjointMatching(reward=LinearReward([1.0, 0.5]), grid=Grid.uniform(4))
    return Run(tiny_policy(dtype), method, TrainConfig(**{**SETTINGS, **train}), tiny_prompts(batch), accelerator)


@dataclass(frozen=True)
class Rows(Batch):
    """Noise of a batch, [B, 2]."""

    x: Tensor
    reward: Tensor


@dataclass(frozen=True, kw_only=True)
class Restless(Method):
    """Regresses the network onto a moving target, with a second network and every kind of state there is."""

    critic: nn.Module

    def setup(self, policy: Policy) -> State:
        """A tensor, a number, a list, text."""
        policy.keep_copy("old")
        return {"target": torch.ones(2, dtype=torch.float64), "count": 0, "seen": [], "mode": "up"}

    def modules(self) -> dict[str, nn.Module]:
        """The critic."""
        return {"critic": self.critic}

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """Noise, with some from the global generator: resuming must put that back too."""
        x = turn.noise(prompts.ids).normal((2,), torch.float64) + 1e-3 * torch.randn(2, dtype=torch.float64)
        state["count"] += 1
        state["seen"].append(float(x.mean()))
        return Rows(x, x.sum(1))

    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """Two chunks, one a network."""
        assert isinstance(batch, Rows)
        t = torch.full((len(batch),), 0.5, dtype=torch.float64)
        v = policy.view("current")(batch.x, t)
        yield Chunk((v - state["target"]).square().mean(), {"v": v.detach().mean()})
        yield Chunk((self.critic(batch.x) - batch.reward.unsqueeze(1)).square().mean(), module="critic")

    def after_update(self, policy: Policy, state: State, turn: Turn) -> None:
        """Moves the target and the old policy."""
        state["target"] = 0.9 * state["target"] + 0.1 * state["seen"][-1]
        policy.move_copy("old", 0.5)


def restless_run(**train: object) -> Run:
    """A run of ``Restless`` with a small critic."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        critic = nn.Linear(2, 1).double()
    return tiny_run(Restless(critic=critic), **train)
