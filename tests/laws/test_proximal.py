"""Deterministic control, T8: the proximal map in continuous time, on Euler and on Heun, against brute force."""

import math

import pytest
import torch

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.models import Model, velocity
from girsanov.problems import Flow, Gaussian, LinearReward, QuadraticReward, discrete_flow, end_law, tilt
from girsanov.problems.proximal import prox
from girsanov.processes import VP, Cosine, RectifiedFlow
from girsanov.samplers import GDDIM, Euler, Heun, Sampler

F64 = torch.float64
DATA, REWARD, LAM = Gaussian(0.8, 1.69), QuadraticReward(1.5, 0.6), 0.9  # T8 of the notes, its start is x0 = -.7
START = torch.tensor([[-0.7]], dtype=F64)
FLOW = Flow(DATA, RectifiedFlow())
SOLID = Gaussian([0.3, -0.4, 0.9], [[1.0, 0.3, 0.1], [0.3, 0.8, -0.2], [0.1, -0.2, 0.5]])
SOLID_REWARD = QuadraticReward([[0.8, 0.1, 0.3], [0.1, 0.5, -0.2], [0.3, -0.2, 0.9]], [0.4, -0.2, 0.1])


def test_the_printed_numbers() -> None:
    """G(0), X_1*, the truncated window [.7, 1], the fine-tuned law (notes 4d and 7)."""
    S = 1.3
    assert abs(float(FLOW.gramian()) - 2.0420352248) < 1e-9
    for window in (0.05, 0.3, 0.999, 1.0):
        arc = S * math.atan2(window, S * (1 - window))
        assert abs(float(FLOW.gramian(window)) - arc) < 1e-12
    assert abs(float(prox(REWARD, FLOW.gramian(), LAM, FLOW.end(START, 1.0))) - 0.2841801967) < 1e-10
    assert abs(float(prox(REWARD, FLOW.gramian(0.3), LAM, FLOW.end(START, 1.0))) - 0.0982204793) < 1e-10
    law, hold = FLOW.law_of(REWARD, LAM), 1 + 1.5 * math.pi * S / (2 * LAM)
    assert abs(float(law.mean) - (0.8 + math.pi * S * 0.6 / (2 * LAM)) / hold) < 1e-12
    assert abs(float(law.cov) - S**2 / hold**2) < 1e-12


def test_truncation_is_a_smaller_step_size() -> None:
    """One field a time: the window [tau, 1] with lam equals the full window with lam G(0) / G(tau)."""
    ratio = float(FLOW.gramian() / FLOW.gramian(0.3))
    short, rescaled = FLOW.law_of(REWARD, LAM, 0.3), FLOW.law_of(REWARD, LAM * ratio)
    torch.testing.assert_close(short.mean, rescaled.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(short.cov, rescaled.cov, rtol=1e-12, atol=0)


@pytest.mark.parametrize("process", [RectifiedFlow(), Cosine(), VP()], ids=lambda p: type(p).__name__)
def test_the_control_steers_to_its_law(process: object) -> None:
    """Integrating the probability flow plus u*(x, t) by Heun (n = 50, 100: order 2) gives the proximal map, d = 3."""
    flow, model = Flow(SOLID, process), SOLID.model(process)

    def net(x: torch.Tensor, t: torch.Tensor, cond: object) -> torch.Tensor:
        return model.net(x, t, cond) + flow.control(SOLID_REWARD, LAM, x, float(t[0]))

    tuned, gaps = Model(net, process, "velocity", (3,)), []
    for n in (50, 100):
        got, untuned = end_law(tuned, Heun(), Grid.uniform(n)), end_law(model, Heun(), Grid.uniform(n))
        # Each end point is the prox of where the untuned flow would have ended (VP does not start on its own marginal).
        expected = prox(SOLID_REWARD, flow.gramian(), LAM, untuned.mean.unsqueeze(0))[0]
        gaps.append(float((got.mean - expected).norm()))
    assert gaps[1] < 2e-3 and 3.0 < gaps[0] / gaps[1] < 5.0
    if isinstance(process, RectifiedFlow):
        law = flow.law_of(SOLID_REWARD, LAM)
        assert float((got.cov - law.cov).abs().max()) < 2e-3 and float((got.mean - law.mean).abs().max()) < 2e-3


def test_the_euler_numbers_of_the_notes() -> None:
    """N = 6: end points for K = 6 and 3 and the three controls, printed digits (sampling time has the other sign)."""
    model, grid = DATA.model(RectifiedFlow()), Grid.uniform(6)
    full, short = (discrete_flow(model, Euler(), grid, k) for k in (6, 3))
    assert abs(float(full.controls(REWARD, LAM, START)[0]) - 0.3125074960) < 1e-10
    end, controls = short.controls(REWARD, LAM, START)
    assert abs(float(end) - 0.2479597082) < 1e-10
    printed = torch.tensor([0.34260256, 0.29704982, 0.25340049], dtype=F64)
    torch.testing.assert_close(-controls.flatten(), printed, rtol=0, atol=5e-9)


def simulate(
    model: Model, sampler: Sampler, grid: Grid, x: torch.Tensor, controls: torch.Tensor, first: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The solver with a free velocity shift a stage: end points [B, d], and ``sum_j w_j |u_j|^2 / 2`` [B]."""
    cost, j = torch.zeros(len(x), dtype=F64), 0
    for step in grid:
        dialogue = sampler.stages(model, x, step)
        stage = next(dialogue)
        while True:
            v = velocity(model, stage.x, stage.t)
            if step.i >= first:
                v, cost, j = v + controls[j], cost + float(stage.weight) * controls[j].square().sum(1) / 2, j + 1
            try:
                stage = dialogue.send(v)
            except StopIteration as end:
                x = end.value
                break
    return x, cost


@pytest.mark.parametrize("last", [6, 2])
@pytest.mark.parametrize("name", ["euler", "heun", "ddim"])
@pytest.mark.parametrize("process", [RectifiedFlow(), Cosine(), VP()], ids=lambda p: type(p).__name__)
def test_the_discrete_optimum_is_the_minimum_found_by_newton(process: object, name: str, last: int) -> None:
    """Newton on sum_k w |u|^2 lam / 2 - r(x_end), controls free per sample and stage: equal to 1e-10 in d = 3."""
    sampler = {"euler": Euler(), "heun": Heun(), "ddim": GDDIM(0.0)}[name]
    model, grid = SOLID.model(process), Grid.uniform(6)
    flow = discrete_flow(model, sampler, grid, last)
    x = torch.randn(1, 3, dtype=F64, generator=torch.Generator().manual_seed(10))
    end, controls = flow.controls(SOLID_REWARD, LAM, x)

    def objective(u: torch.Tensor) -> torch.Tensor:
        z, cost = simulate(model, sampler, grid, x, u.view_as(controls), 6 - last)
        return (LAM * cost - SOLID_REWARD(z)).sum()

    u = torch.zeros(controls.numel(), dtype=F64)
    for _ in range(2):  # quadratic: the first step lands, the second removes rounding
        gradient = torch.func.grad(objective)(u)
        u = u - torch.linalg.solve(torch.autograd.functional.hessian(objective, u), gradient)
    torch.testing.assert_close(controls.flatten(), u, rtol=0, atol=1e-10)
    torch.testing.assert_close(simulate(model, sampler, grid, x, controls, 6 - last)[0], end, rtol=0, atol=1e-12)


def test_the_discrete_law_converges_with_the_solvers_order() -> None:
    """Grid -> 0: the proximal law of Euler is off by O(h), of Heun by O(h^2)."""
    model, exact = DATA.model(RectifiedFlow()), FLOW.law_of(REWARD, LAM)
    for sampler, order in ((Euler(), 1), (Heun(), 2)):
        gaps = [
            abs(float(discrete_flow(model, sampler, Grid.uniform(n)).law(REWARD, LAM).cov - exact.cov))
            for n in (100, 200)
        ]
        assert abs(math.log2(gaps[0] / gaps[1]) - order) < 0.1


@pytest.mark.parametrize("q", [1.5, 2.0, 3.0])
def test_power_costs_with_a_linear_reward(q: float) -> None:
    """One dimension: (b / lam)^(1/(q-1)) int (S / Sig)^(q/(q-1)) dt; d = 3 isotropic: along b; q = 2: quadratic."""
    t = (torch.arange(200_000, dtype=F64) + 0.5) / 200_000
    slope = (1.69 / ((1 - t) ** 2 * 1.69 + t**2)).sqrt()
    for window in (1.0, 0.3):
        inside = t <= window
        midpoint = (0.6 / LAM) ** (1 / (q - 1)) * float(slope[inside].pow(q / (q - 1)).sum()) / 200_000
        assert abs(float(FLOW.power_shift(torch.tensor([0.6], dtype=F64), LAM, q, window)) - midpoint) < 2e-5
    b = torch.tensor([0.3, -0.4, 1.2], dtype=F64)
    ball = Flow(Gaussian([0.0, 1.0, 2.0], (1.69 * torch.eye(3)).tolist()), RectifiedFlow())
    along = FLOW.power_shift(b.norm().reshape(1), LAM, q) * b / b.norm()
    torch.testing.assert_close(ball.power_shift(b, LAM, q), along, rtol=1e-6, atol=0)
    if q == 2.0:
        assert abs(float(FLOW.power_shift(torch.tensor([0.6], dtype=F64), LAM, q) - FLOW.gramian() * 0.6 / LAM)) < 1e-12


def test_it_is_not_the_tilted_law() -> None:
    """No lam matches the tilted law: with equal means (lam = beta pi / (2 S)) the variance is a square."""
    beta = 0.7
    target, law = tilt(DATA, REWARD, beta), FLOW.law_of(REWARD, beta * math.pi / (2 * 1.3))
    torch.testing.assert_close(law.mean, target.mean, rtol=1e-12, atol=0)
    assert abs(float(law.cov * DATA.cov / target.cov**2) - 1) < 1e-12
    shift = FLOW.law_of(LinearReward(0.6), 1.0)
    assert abs(float(shift.cov - DATA.cov)) < 1e-12


def test_what_is_refused() -> None:
    with pytest.raises(GirsanovError, match="backwards stage by stage"):
        discrete_flow(DATA.model(RectifiedFlow()), GDDIM(1.0), Grid.uniform(4))
    with pytest.raises(GirsanovError, match="running cost must be positive"):
        FLOW.law_of(REWARD, 0.0)
