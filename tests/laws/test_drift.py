"""Drift: path KL against closed forms and Girsanov's theorem by Monte Carlo, energy against its integral."""

import math

import pytest
import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.evaluation import energy, kernel_kl, path_kl
from girsanov.grids import Grid
from girsanov.models import Model
from girsanov.noise import Noise
from girsanov.processes import VP, Process, RectifiedFlow
from girsanov.rollout import replay, rollout
from girsanov.samplers import GDDIM, Euler

D = 3


def gaussian(process: Process, mean: Tensor, std: float) -> Model:
    """The exact denoiser of N(mean, std^2 I)."""

    def net(x: Tensor, t: Tensor, cond: object) -> Tensor:
        c = process(t)
        gain = c.alpha * std**2 / (c.alpha**2 * std**2 + c.sigma**2)
        return mean + gain[:, None] * (x - c.alpha[:, None] * mean)

    return Model(net, process, "x0", (D,))


def shifted(model: Model, shift: Tensor) -> Model:
    """The same prediction plus a constant."""
    return Model(lambda x, t, cond: model.net(x, t, cond) + shift, model.process, model.prediction, model.shape)


def start(n: int, seed: int = 0) -> tuple[Tensor, Noise]:
    z = Noise(seed, 0, torch.arange(n))(torch.empty(n, D, dtype=torch.float64))
    return z, Noise(seed, 1, torch.arange(n))


ZERO = torch.zeros(D, dtype=torch.float64)
MOVE = torch.tensor([0.6, -0.3, 0.2], dtype=torch.float64)


@pytest.mark.parametrize("eta", [0.5, 1.0, 1.7])
def test_a_constant_shift_of_the_score_costs_the_published_sum(eta: float) -> None:
    r"""T11: KL = ((1 + eta^2) / (2 eta))^2 |delta|^2 / 2 * log(abar_end / abar_start), int g^2 dt of the VP process.

    gDDIM's kernels reach it with first order: 400 steps within 2 %, and the error halves from 200 steps (1.6 to 2.4).
    """
    process = VP()
    reference = gaussian(process, ZERO, 1.0)
    score = Model(
        lambda x, t, cond: (process(t).alpha[:, None] * reference.net(x, t, cond) - x) / process(t).sigma[:, None] ** 2,
        process,
        "score",
        (D,),
    )
    x_T, noise = start(2)
    log_abar = [2 * math.log(float(process(t).alpha)) for t in (0.9, 0.05)]
    exact = ((1 + eta**2) / (2 * eta)) ** 2 * float(MOVE.square().sum()) / 2 * (log_abar[1] - log_abar[0])
    errors = []
    for n in (200, 400):
        grid = Grid.uniform(n, start=0.9, end=0.05)
        kl = path_kl(shifted(score, MOVE), score, GDDIM(eta), grid, x_T, noise=Noise(0, 1, torch.arange(2)))
        assert kl[0] == pytest.approx(float(kl[1]), rel=1e-6)  # a constant shift costs every sample the same
        errors.append(abs(float(kl[0]) - exact))
    assert errors[1] < 0.02 * exact
    assert 1.6 < errors[0] / errors[1] < 2.4


def test_memoryless_path_kl_of_two_gaussians_tends_to_the_kl_of_their_ends() -> None:
    r"""eta = 1 from pure noise reverses the noising, which both share, so the path KL tends to |m|^2 / (2 s^2).

    On a grid it is sum_k (1/rho_s^2 - 1/rho_t^2) (rho_t^2 / (s^2 + rho_t^2))^2 |m|^2 / 2, of first order: the error
    halves from 200 to 400 steps (1.8 to 2.2), and extrapolated it is 0.5 % off.
    """
    process, s = RectifiedFlow(), 0.8
    half = float(MOVE.square().sum()) / 2
    found = []
    for n in (200, 400):
        rho = torch.logspace(4, -4, n + 1, dtype=torch.float64)
        grid = Grid([1.0, *process.time_of_rho(rho).tolist()])
        x_T, noise = start(2)
        kl = path_kl(gaussian(process, MOVE, s), gaussian(process, ZERO, s), GDDIM(1.0), grid, x_T, noise=noise)
        gap = torch.cat([torch.ones(1), rho[:-1] ** 2 / (s**2 + rho[:-1] ** 2)])
        weight = rho**-2 - torch.cat([torch.zeros(1), rho[:-1] ** -2])
        exact = float((weight * gap**2).sum()) * half
        assert kl.tolist() == pytest.approx([exact] * 2, rel=1e-9)
        found.append(exact)
    limit = half / s**2
    assert 1.8 < (found[0] - limit) / (found[1] - limit) < 2.2
    assert 2 * found[1] - found[0] == pytest.approx(limit, rel=0.005)


def test_path_kl_is_the_mean_log_ratio_of_the_paths() -> None:
    """Girsanov by Monte Carlo, 4,000 chains, 4 standard errors: E log(dP/dQ) = path KL and E_P dQ/dP = 1."""
    process, grid, sampler, n = RectifiedFlow(), Grid.uniform(12), GDDIM(1.0), 4000
    tuned, reference = gaussian(process, 0.3 * MOVE, 0.75), gaussian(process, ZERO, 0.8)
    x_T, noise = start(n)
    kl = path_kl(tuned, reference, sampler, grid, x_T, noise=noise)
    path = rollout(tuned, sampler, grid, x_T, noise=start(n)[1])
    ratio = torch.zeros(n, dtype=torch.float64)
    for tr, kernel in replay(reference, sampler, path):
        if tr.stochastic:
            ratio -= kernel.log_ratio(tr.mean, tr.x_s)
    gap = ratio - kl
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / math.sqrt(n)
    weight = torch.exp(-ratio)
    assert abs(float(weight.mean()) - 1) < 4 * float(weight.std()) / math.sqrt(n)
    assert 0.01 < float(kl.mean()) < 1.0  # neither trivial nor so far apart that the weights mean nothing
    torch.testing.assert_close(kernel_kl(tuned, reference, sampler, path), kl, rtol=1e-9, atol=1e-12)


def test_a_model_has_not_moved_from_itself() -> None:
    model = gaussian(RectifiedFlow(), MOVE, 0.8)
    x_T, noise = start(3)
    assert not bool(path_kl(model, model, GDDIM(0.7), Grid.uniform(5), x_T, noise=noise).any())
    assert not bool(energy(model, model, Euler(), Grid.uniform(5), x_T).any())


@pytest.mark.parametrize("grid", [Grid.uniform(7), Grid.shifted(5, 3.0, start=0.9, end=0.1)], ids=str)
def test_energy_of_a_constant_velocity_is_its_square_times_the_time(grid: Grid) -> None:
    process = RectifiedFlow()
    base = Model(lambda x, t, cond: -0.5 * x, process, "velocity", (D,))
    x_T, _ = start(3)
    length = float(grid.ts[0] - grid.ts[-1])
    expected = torch.full((3,), float(MOVE.square().sum()) * length, dtype=torch.float64)
    torch.testing.assert_close(energy(shifted(base, MOVE), base, Euler(), grid, x_T), expected, rtol=1e-12, atol=0)


def test_energy_reads_any_kind_of_prediction() -> None:
    """Two x0 predictors: v = (x - x0_hat) / t, so a shift of x0_hat by c costs |c|^2 / t^2 per time."""
    process, grid = RectifiedFlow(), Grid.uniform(4, end=0.2)
    base = gaussian(process, ZERO, 0.8)
    x_T, _ = start(2)
    expected = sum(float(step.h.abs()) / float(step.t) ** 2 for step in grid) * float(MOVE.square().sum())
    assert energy(shifted(base, MOVE), base, Euler(), grid, x_T).tolist() == pytest.approx([expected] * 2, rel=1e-9)


def test_a_kernel_kl_along_deterministic_states_is_that_of_the_noisy_kernels_there() -> None:
    """Constant shift of x0: |mean gap|^2 = (alpha_s - k sigma_s alpha_t / sigma_t)^2 |c|^2 at every state, by hand."""
    process, grid, sampler = RectifiedFlow(), Grid.uniform(6), GDDIM(1.0)
    base = gaussian(process, ZERO, 0.8)
    x_T, _ = start(2)
    path = rollout(base, Euler(), grid, x_T)
    expected = 0.0
    for step in list(grid)[:-1]:
        t, s = float(step.t), float(step.s)
        k = (s * (1 - t)) / ((1 - s) * t)
        gap = (1 - s) - k * s * (1 - t) / t
        expected += gap**2 * float(MOVE.square().sum()) / (2 * s**2 * (1 - k**2))
    found = kernel_kl(shifted(base, MOVE), base, sampler, path)
    assert found.tolist() == pytest.approx([expected] * 2, rel=1e-9)


def test_deterministic_samplers_are_sent_to_the_energy() -> None:
    model = gaussian(RectifiedFlow(), ZERO, 0.8)
    x_T, noise = start(2)
    with pytest.raises(GirsanovError) as error:
        path_kl(model, model, Euler(), Grid.uniform(3), x_T, noise=noise)
    assert str(error.value) == (
        "the path KL of a deterministic sampler is infinite: measure energy(...), or path_kl with GDDIM(eta=1.0)"
    )
    with pytest.raises(GirsanovError, match="a deterministic sampler has no kernel KL"):
        kernel_kl(model, model, Euler(), rollout(model, Euler(), Grid.uniform(3), x_T))
