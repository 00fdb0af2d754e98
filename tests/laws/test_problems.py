"""Exact networks, tilted laws and sampler moments against numerical integration and Monte Carlo."""

import itertools
import math

import pytest
import torch

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.predictions import ROWS, convert
from girsanov.problems import (
    Classes,
    Gaussian,
    LinearReward,
    Mixture,
    QuadraticReward,
    affine_kernels,
    chain_law,
    end_law,
    expected_reward,
    frontier,
    gaussian_kl,
    log_partition,
    tilt,
    tilt_kl,
)
from girsanov.problems.moments import prior_moments
from girsanov.processes import PROCESSES, VE, Cosine, Process, RectifiedFlow, VPTable
from girsanov.rollout import rollout
from girsanov.samplers import GDDIM, Euler, Heun

F64 = torch.float64
LINE = Mixture([0.7, 0.3], [[-1.5], [1.2]], [[[0.25]], [[0.6]]])
PLANE = Mixture(
    [0.5, 0.2, 0.3],
    [[0.0, 1.0], [1.5, -0.5], [-1.0, -1.0]],
    [[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.4]], [[0.3, 0.0], [0.0, 0.2]]],
)
SOLID = Gaussian([0.3, -0.4, 0.9], [[1.0, 0.3, 0.1], [0.3, 0.8, -0.2], [0.1, -0.2, 0.5]])


def make(name: str) -> Process:
    return VPTable.stable_diffusion() if name == "vp-table" else VE(5.0) if name == "ve" else PROCESSES[name]()


def plane_grid(n: int = 400, half: float = 8.0) -> tuple[torch.Tensor, float]:
    axis = torch.linspace(-half, half, n, dtype=F64)
    return torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2


@pytest.mark.parametrize("t", [0.1, 0.4, 0.85, 1.0])
@pytest.mark.parametrize("name", PROCESSES)
def test_the_posterior_mean_is_the_integral(name: str, t: float) -> None:
    """E[x_0 | x_t] in the plane, by a Riemann sum of density x likelihood (spectrally accurate for Gaussians)."""
    process, x = make(name), torch.tensor([[0.2, -0.7], [1.9, 0.4]], dtype=F64)
    c = process(t)
    nodes, area = plane_grid()
    log_p = PLANE.log_prob(nodes)
    for state in x:
        log_w = log_p - (state - c.alpha * nodes).square().sum(1) / (2 * c.sigma**2)
        w = torch.softmax(log_w, 0)
        got = PLANE.model(process, "x0")(state[None], torch.tensor(t, dtype=F64))[0]
        torch.testing.assert_close(got, w @ nodes, rtol=1e-9, atol=1e-9)
    assert abs(float(log_p.exp().sum()) * area - 1) < 1e-9


@pytest.mark.parametrize("t", [0.0, 0.3, 0.999, 1.0])
@pytest.mark.parametrize("prediction", ROWS)
@pytest.mark.parametrize("name", PROCESSES)
def test_every_prediction_is_the_same_statement(name: str, prediction: str, t: float) -> None:
    """All kinds agree with x0 through the table wherever it is regular, and are finite at both ends where defined."""
    process, time = make(name), torch.tensor(t, dtype=F64)
    x = torch.tensor([[0.2, -0.7], [1.1, 0.4]], dtype=F64)
    p = PLANE.model(process, prediction)(x, time)
    c = process(time)
    if all(v.isfinite() for v in (c.d_alpha, c.d_sigma)):
        assert p.isfinite().all()
    if 0 < t and float(c.alpha) > 0 and float(c.sigma) > 0:
        torch.testing.assert_close(
            convert(p, x, c, prediction, "x0"), PLANE.model(process, "x0")(x, time), rtol=1e-7, atol=1e-7
        )


def test_the_score_is_the_gradient_of_the_log_density() -> None:
    x = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    c = Cosine()(torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0], dtype=F64))
    rows = [
        SOLID.noised(float(a), float(s)).log_prob(x[i : i + 1])
        for i, (a, s) in enumerate(zip(c.alpha, c.sigma, strict=True))
    ]
    (gradient,) = torch.autograd.grad(torch.cat(rows).sum(), x)
    torch.testing.assert_close(SOLID.score(x, c), gradient, rtol=1e-12, atol=1e-12)
    reference = torch.distributions.MultivariateNormal(SOLID.mean, SOLID.cov)
    torch.testing.assert_close(SOLID.log_prob(x), reference.log_prob(x), rtol=1e-12, atol=1e-12)


def test_shapes_times_and_classes() -> None:
    """Data of any shape, one time a sample, batch size equal to the width, labels that pick the law of each sample."""
    laws = [
        Mixture(
            [0.4, 0.6],
            [[float(i), 0.0, -1.0], [1.0, 0.5, i / 2]],
            [torch.eye(3).tolist(), (0.3 * torch.eye(3)).tolist()],
        )
        for i in range(3)
    ]
    classes, process = Classes(laws, [1.0, 2.0, 3.0]), RectifiedFlow()
    x = torch.randn(3, 3, 1, 1, dtype=F64, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([0.1, 0.6, 1.0], dtype=F64)
    cond = classes.cond([2, 0, 1], null=True)
    got = classes.model(process, shape=(3, 1, 1))(x, t, cond)
    for i, label in enumerate([2, 0, 1]):
        alone = laws[label].model(process)(x[i : i + 1].flatten(1), t[i])
        torch.testing.assert_close(got[i : i + 1].flatten(1), alone, rtol=1e-13, atol=1e-13)
    null = classes.model(process, shape=(3, 1, 1))(x, t, cond.null)
    whole = classes.pooled.model(process)(x.flatten(1), t)
    torch.testing.assert_close(null.flatten(1), whole, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(classes.pooled.mean, sum(p * a.mean for p, a in zip(classes.prior, laws, strict=True)))
    assert classes.model(process)(x.flatten(1).float(), t.float(), cond).dtype == torch.float32


def test_samples_have_the_moments() -> None:
    """Seed 3, n = 200000: every mean within z = 5, every covariance entry within 5 of its own standard errors."""
    n = 200_000
    x = PLANE.sample(n, torch.Generator().manual_seed(3))
    z = (x.mean(0) - PLANE.mean) / (PLANE.cov.diagonal() / n).sqrt()
    assert float(z.abs().max()) < 5
    products = (x - PLANE.mean).unsqueeze(2) * (x - PLANE.mean).unsqueeze(1)
    z = (products.mean(0) - PLANE.cov) / (products.std(0) / math.sqrt(n))
    assert float(z.abs().max()) < 5
    nodes, area = plane_grid()
    log_p = PLANE.log_prob(nodes)
    entropy, seen = -float(log_p.exp() @ log_p) * area, PLANE.log_prob(x)
    assert abs(float(seen.mean()) + entropy) < 5 * float(seen.std()) / math.sqrt(n)


REWARDS = {
    "linear": LinearReward([0.5, -0.3]),
    "quadratic": QuadraticReward([[1.0, 0.4], [0.4, 0.6]], [0.5, -0.3]),
    "indefinite": QuadraticReward([[1.0, 0.9], [0.9, -0.3]], [0.2, 0.1]),
}


@pytest.mark.parametrize("beta", [0.8, 2.5])
@pytest.mark.parametrize("name", REWARDS)
def test_the_tilted_mixture_is_the_integral(name: str, beta: float) -> None:
    reward = REWARDS[name]
    nodes, area = plane_grid()
    log_p, r = PLANE.log_prob(nodes), reward(nodes)
    log_z = torch.logsumexp(log_p + r / beta, 0) + math.log(area)
    assert abs(float(log_z - log_partition(PLANE, reward, beta))) < 1e-9
    tilted = tilt(PLANE, reward, beta)
    torch.testing.assert_close(tilted.log_prob(nodes), log_p + r / beta - log_z, rtol=1e-8, atol=1e-8)
    p = tilted.log_prob(nodes).exp() * area
    assert abs(float(p @ r - expected_reward(tilted, reward))) < 1e-9
    assert abs(float(p @ (tilted.log_prob(nodes) - log_p)) - float(tilt_kl(PLANE, reward, beta))) < 1e-9


def test_the_frontier_has_slope_beta() -> None:
    """d reward / d KL = beta along the frontier: the multiplier of the constraint."""
    betas = torch.logspace(-0.3, 1, 400, dtype=F64)
    front = frontier(PLANE, REWARDS["quadratic"], betas)
    slope = (front.reward[2:] - front.reward[:-2]) / (front.kl[2:] - front.kl[:-2])
    torch.testing.assert_close(slope, front.beta[1:-1], rtol=1e-3, atol=0)
    gauss, reward = SOLID, LinearReward([0.2, 0.5, -0.1])
    torch.testing.assert_close(
        tilt_kl(gauss, reward, 0.7), gaussian_kl(tilt(gauss, reward, 0.7), gauss), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("name", ["rectified-flow", "ve"])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0, 2.0])
def test_sampler_moments_follow_the_published_recursion(name: str, eta: float) -> None:
    """T2: gDDIM on N(m, s0^2) in y = x / alpha: one affine map and one variance a step; to 1e-12."""
    process, law = make(name), Gaussian(0.8, 1.69)
    start = 0.999 if name == "rectified-flow" else 1.0
    grid, model = Grid.uniform(30, start=start), law.model(process)
    rho, m, v = process.rho(grid.ts), 0.0, float(process.prior_std**2 / process(grid.ts[0]).alpha ** 2)
    for a, b in itertools.pairwise(rho.tolist()):
        k = (b / a) ** (eta**2) if b > 0 or eta > 0 else 1.0
        slope = 1 - a * (a - b * k) / (1.69 + a**2)
        m, v = 0.8 + slope * (m - 0.8), slope**2 * v + b**2 * (1 - k**2)
    got = end_law(model, GDDIM(eta), grid)
    assert abs(float(got.mean) - m) < 1e-12 and abs(float(got.cov) - v) < 1e-12
    step_by_step = chain_law(affine_kernels(model, GDDIM(eta), grid), *prior_moments(model))
    torch.testing.assert_close(got.cov, step_by_step.cov, rtol=1e-12, atol=0)


def test_moments_in_three_dimensions_with_classes() -> None:
    """Full covariance and a label: end moments of gDDIM(1) and Heun against 40000 samples (seed 4, z < 5)."""
    classes = Classes([SOLID, Gaussian([1.0, 0.0, -1.0], 0.5 * SOLID.cov)])
    model, grid, n = classes.model(RectifiedFlow(), shape=(3, 1)), Grid.shifted(12), 40_000
    generator = torch.Generator().manual_seed(4)
    for sampler in (GDDIM(1.0), Heun()):
        law = end_law(model, sampler, grid, classes.cond([1]))

        def noise(like: torch.Tensor) -> torch.Tensor:
            return torch.randn(like.shape, dtype=F64, generator=generator)

        x = rollout(
            model, sampler, grid, noise(torch.empty(n, 3, 1)), classes.cond([1] * n), noise=noise, keep=()
        ).x0.flatten(1)
        z = (x.mean(0) - law.mean) / (law.cov.diagonal() / n).sqrt()
        assert float(z.abs().max()) < 5
        products = (x - law.mean).unsqueeze(2) * (x - law.mean).unsqueeze(1)
        assert float(((products.mean(0) - law.cov) / (products.std(0) / math.sqrt(n))).abs().max()) < 5


def test_what_is_refused() -> None:
    with pytest.raises(GirsanovError, match="positive definite"):
        Gaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(GirsanovError, match="raise beta"):
        tilt(Gaussian(0.0, 1.0), QuadraticReward(-2.0, 0.0), 1.0)
    with pytest.raises(GirsanovError, match="beta weighs a KL"):
        tilt(Gaussian(0.0, 1.0), LinearReward(1.0), 0.0)
    with pytest.raises(GirsanovError, match="not affine"):
        end_law(LINE.model(RectifiedFlow()), Euler(), Grid.uniform(4))
    with pytest.raises(GirsanovError, match="needs conditions"):
        Classes([SOLID]).model(RectifiedFlow())(torch.zeros(1, 3), torch.tensor(0.5))
