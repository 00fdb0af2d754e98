"""Gaussian laws of actions against torch.distributions; m = 1 and 3, shared and own factors. Seed 0, float64."""

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from girsanov.control.gaussian import ActionLaw

F64 = torch.float64


def law(m: int, own: bool, seed: int, n: int = 7) -> ActionLaw:
    g = torch.Generator().manual_seed(seed)
    shape = (n, m, m) if own else (m, m)
    raw = torch.randn(shape, generator=g, dtype=F64).tril(-1)
    diagonal = torch.randn(shape[:-1], generator=g, dtype=F64).exp()
    return ActionLaw(torch.randn(n, m, generator=g, dtype=F64), raw + torch.diag_embed(diagonal))


def reference(p: ActionLaw) -> MultivariateNormal:
    return MultivariateNormal(p.mean, scale_tril=p.tril.expand(len(p.mean), -1, -1))


@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("own", [False, True])
def test_density_entropy_and_samples(m: int, own: bool) -> None:
    p = law(m, own, 0)
    a, z = torch.randn(2, 7, m, generator=torch.Generator().manual_seed(5), dtype=F64)
    torch.testing.assert_close(p.log_prob(a), reference(p).log_prob(a), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(p.entropy(), reference(p).entropy(), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(p.whiten(p.sample(z) - p.mean), z, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(p.covariance.expand(7, m, m), reference(p).covariance_matrix)


@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("own", [(False, False), (True, False), (False, True), (True, True)])
def test_divergences(m: int, own: tuple[bool, bool]) -> None:
    p, q = law(m, own[0], 1), law(m, own[1], 2)
    torch.testing.assert_close(p.kl(q), kl_divergence(reference(p), reference(q)), atol=1e-9, rtol=1e-9)
    assert float(p.kl(p).abs().max()) < 1e-12
