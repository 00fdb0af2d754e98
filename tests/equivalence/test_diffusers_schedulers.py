"""Grids and solvers against the schedulers of diffusers, where that is installed (its import takes seconds: slow)."""

import math

import numpy as np
import pytest
import torch

from girsanov.grids import Grid
from girsanov.models import Model
from girsanov.processes import RectifiedFlow, VPTable
from girsanov.rollout import rollout
from girsanov.samplers import GDDIM, DPMSolverPP2M, Euler

pytestmark = pytest.mark.slow

TABLE = VPTable.stable_diffusion()
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
F64 = torch.float64


@pytest.fixture(scope="module")
def diffusers() -> object:
    return pytest.importorskip("diffusers")


def net(x: torch.Tensor, t: torch.Tensor, cond: object) -> torch.Tensor:
    """Some smooth nonlinear eps prediction of state and table index."""
    return torch.tanh(x) + 0.3 * torch.cos(t[:, None] / 200)


MODEL = Model(net, TABLE, "eps", (3,), time=lambda t: t * 1000 - 1)
START = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))


def sample(scheduler: object, n: int) -> torch.Tensor:
    """The loop of a diffusers pipeline."""
    scheduler.set_timesteps(n)
    x = START.clone() * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t.to(F64).expand(5), None), t, x).prev_sample
    return x


@pytest.mark.parametrize("n", [1, 7, 10, 50])
def test_table_spacings(diffusers: object, n: int) -> None:
    """The indices of DDIMScheduler, "leading" with offsets 0 and 1 and "trailing"; its alphas to 1e-5 (float32)."""
    for offset in (0, 1):
        theirs = diffusers.DDIMScheduler(**BETAS, timestep_spacing="leading", steps_offset=offset)
        theirs.set_timesteps(n)
        ours = (Grid.leading(n, TABLE, offset=offset).ts[:-1] * 1000 - 1).round().long()
        assert ours.tolist() == theirs.timesteps.tolist()
    theirs = diffusers.DDIMScheduler(**BETAS, timestep_spacing="trailing")
    theirs.set_timesteps(n)
    assert (Grid.trailing(n, TABLE).ts[:-1] * 1000 - 1).round().long().tolist() == theirs.timesteps.tolist()
    assert np.allclose(TABLE.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=1e-5)


@pytest.mark.parametrize("to_one", [True, False])
def test_ddim(diffusers: object, to_one: bool) -> None:
    """20 steps of DDIM, ending at clean data or at the table's first alpha: relative 1e-4 (float32 tables)."""
    theirs = diffusers.DDIMScheduler(
        **BETAS, timestep_spacing="leading", steps_offset=1, set_alpha_to_one=to_one, clip_sample=False
    )
    grid = Grid.leading(20, TABLE, offset=1, end=0.0 if to_one else 1 / 1000)
    ours = rollout(MODEL, GDDIM(0.0), grid, START).x0
    assert torch.allclose(ours, sample(theirs, 20), rtol=1e-4, atol=1e-4)


def test_ddpm_ancestral_noise(diffusers: object) -> None:
    """gDDIM(1) has the variance of DDIMScheduler's eta = 1 on every step: relative 1e-3 (float32 tables)."""
    theirs = diffusers.DDIMScheduler(**BETAS, timestep_spacing="trailing")
    grid = Grid.trailing(20, TABLE)
    for step in list(grid)[:-1]:
        i, j = (int((t * 1000 - 1).round()) for t in (step.t, step.s))
        variance = float(theirs._get_variance(i, j))
        assert float(GDDIM(1.0).kernel(MODEL, START, step)[0].std) == pytest.approx(math.sqrt(variance), rel=1e-3)


def test_dpm_solver(diffusers: object) -> None:
    """20 steps of DPM-Solver++(2M), midpoint, first order at the last step: relative 1e-4 (float32 tables)."""
    theirs = diffusers.DPMSolverMultistepScheduler(
        **BETAS,
        timestep_spacing="trailing",
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
        euler_at_final=False,
        lower_order_final=True,
    )
    ours = rollout(MODEL, DPMSolverPP2M(), Grid.trailing(20, TABLE), START).x0
    assert torch.allclose(ours, sample(theirs, 20), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_euler(diffusers: object, shift: float) -> None:
    """FlowMatchEulerDiscreteScheduler, shift as in SD3: Euler on the same times gives the same samples, 1e-4."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    u = np.linspace(1.0, 1 / 10, 10)  # the sigmas that SD3's and FLUX's pipelines pass
    theirs.set_timesteps(sigmas=u.tolist())
    ts = torch.cat([theirs.sigmas[:-1].to(F64), torch.zeros(1, dtype=F64)])
    expected = Grid.shifted(10, shift=shift).ts
    assert torch.allclose(ts, expected, atol=1e-6)

    def flow_net(x: torch.Tensor, t: torch.Tensor, cond: object) -> torch.Tensor:
        return torch.tanh(x) + t[:, None]

    x = START.clone()
    for t in theirs.timesteps:
        x = theirs.step(flow_net(x, (t / 1000).to(F64).expand(5), None), t, x).prev_sample
    ours = rollout(Model(flow_net, RectifiedFlow(), "velocity", (3,)), Euler(), Grid(expected), START).x0
    assert torch.allclose(ours, x.to(F64), rtol=1e-4, atol=1e-4)
