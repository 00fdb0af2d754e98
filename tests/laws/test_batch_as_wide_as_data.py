"""Every sampled method with as many samples as data dimensions, classes and full covariance: a factor [B] that met the
wrong axis would not change a shape here, but it would change the gradient."""

import pytest
import torch
from torch import Tensor, nn

from girsanov.grids import Grid
from girsanov.methods import METHODS
from girsanov.methods.forward.base import ForwardMethod
from girsanov.methods.policy_gradient import ClippedPG
from girsanov.methods.preference import DiffusionDPO
from girsanov.models import Model
from girsanov.pairs import Pairs
from girsanov.policy import Policy
from girsanov.problems import Classes, Gaussian, LinearReward
from girsanov.processes import RectifiedFlow
from girsanov.types import Cond, Prompts
from tests.laws.correction import collect, gradient

F64 = torch.float64
COV = torch.tensor([[1.0, 0.3, 0.1], [0.3, 0.8, -0.2], [0.1, -0.2, 0.6]], dtype=F64)
LAWS = Classes([Gaussian([0.0, 1.0, -1.0], COV), Gaussian([1.0, -1.0, 0.5], 0.5 * COV)])
SAMPLED = [n for n, cls in METHODS.items() if issubclass(cls, ClippedPG | ForwardMethod)]


class Shifted(nn.Module):
    """The exact class-conditional network with a trainable affine change that depends on time and class."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.base = LAWS.model(RectifiedFlow()).net
        self.W = nn.Parameter(0.2 * torch.randn(2, 3, 5, dtype=F64, generator=g))

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        seen = torch.cat([x, t.unsqueeze(1), torch.ones_like(x[:, :1])], 1)
        return self.base(x, t, cond) + torch.einsum("bij,bj->bi", self.W[cond["label"]], seen)


def policy() -> Policy:
    return Policy(Model(Shifted(), RectifiedFlow(), "velocity", (3,)))


def one_by_one(method: object, tuned: Policy, batch: object) -> None:
    whole = gradient(tuned, method, batch)
    assert float(whole.abs().max()) > 0
    alone = sum(gradient(tuned, method, batch.take(torch.tensor([i]))) for i in range(len(batch))) / len(batch)
    torch.testing.assert_close(alone, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLED)
def test_samples_do_not_mix(name: str) -> None:
    ids = torch.arange(3)
    prompts = Prompts(LAWS.cond([1, 1, 1]), ids, torch.zeros_like(ids))
    tuned, method = policy(), METHODS[name](reward=LinearReward([1.0, -0.5, 0.3]), grid=Grid.uniform(6))
    batch = collect(method, tuned, prompts)
    one_by_one(method, tuned, batch)


def test_pairs_do_not_mix() -> None:
    g = torch.Generator().manual_seed(1)
    better, worse = (torch.randn(3, 3, dtype=F64, generator=g) for _ in range(2))
    tuned, method = policy(), DiffusionDPO(draws=3)
    batch = collect(method, tuned, Pairs(LAWS.cond([0, 1, 0]), better, worse, 3).batch(0))
    with torch.no_grad():
        tuned.net.W.add_(0.05)
    one_by_one(method, tuned, batch)
