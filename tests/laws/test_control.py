"""Optimal control of the eta-samplers in continuous time: T4, T6, T9 of the notes, and the deployment theorem."""

import dataclasses
import math

import pytest
import torch

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.models import velocity
from girsanov.problems import (
    Gaussian,
    LinearReward,
    Mixture,
    OptimalControl,
    QuadraticReward,
    affine_kernels,
    deployment_factor,
    end_law,
    mixture_value,
    tilt,
)
from girsanov.problems.rewards import log_mean_exp
from girsanov.processes import VE, VP, Cosine, RectifiedFlow
from girsanov.samplers import GDDIM

F64 = torch.float64
DATA = Gaussian(0.8, 1.69)
SOLID = Gaussian([0.3, -0.4, 0.9], [[1.0, 0.3, 0.1], [0.3, 0.8, -0.2], [0.1, -0.2, 0.5]])
SOLID_REWARD = QuadraticReward([[0.8, 0.1, 0.3], [0.1, 0.5, -0.2], [0.3, -0.2, 0.9]], [0.4, -0.2, 0.1])
BETA = 0.7


def ve(eta: float, reward: QuadraticReward, law: Gaussian = DATA) -> OptimalControl:
    return OptimalControl(law, reward, BETA, VE(7.0), eta)


START = Gaussian(0.0, 49.0)


@pytest.mark.parametrize(
    ("eta", "sde", "ode"),
    [(0.3, 0.381958823, 0.377183807), (1.0, 1.400276189, 1.184073594), (2.0, 1.448569639, 0.578784508)],
)
def test_linear_reward_shifts(eta: float, sde: float, ode: float) -> None:
    """Notes 3d(B) and section 7, s0 = 1.3, beta = .7, T = 7, b = .6: the mean shift of trained SDE and its ODE."""
    control, q = ve(eta, LinearReward(0.6)), 1.69 / (1.69 + 49.0)
    base, base_ode = 0.8 * (1 - q ** ((1 + eta**2) / 2)), 0.8 * (1 - q**0.5)
    full = 0.6 * 1.69 / BETA
    assert abs(float(control.trained_law(START).mean) - base - sde) < 1e-9
    assert abs(float(control.trained_law(START).mean) - base - full * (1 - q ** (eta**2))) < 1e-12
    deployed = control.deployed_law(START, 7.0, 0.0)
    assert abs(float(deployed.mean) - base_ode - ode) < 1e-9
    assert abs(float(deployed.mean) - base_ode - 2 / (1 + eta**2) * full * (1 - q ** (eta**2 / 2))) < 1e-9


@pytest.mark.parametrize(
    ("eta", "sde", "ode"), [(1.0, 0.365668, 0.362979), (2.0, 0.365688, 0.885626), (0.5, None, None)]
)
def test_quadratic_reward_variances(eta: float, sde: float | None, ode: float | None) -> None:
    """Notes 3d(B), centred, a = 1.5: closed forms to 1e-9, printed digits to 1e-6, and the steered process itself."""
    control, q, A, e = (
        ve(eta, QuadraticReward(1.5, 0.0), Gaussian(0.0, 1.69)),
        1.69 / (1.69 + 49.0),
        1.5 * 1.69 / BETA,
        eta**2,
    )
    mixed = 1 + A * (1 - q**e)
    var_sde = 1.69 * (1 - q**e) / mixed + 1.69 * (1 - q) * q**e / mixed**2
    # The printed formula starts the SDE from S0 = T^2 = s0^2 (1 - q) / q.
    var_ode = 1.69 * (1 - q) * mixed ** (-2 / (1 + e))
    assert abs(float(control.trained_law(START).cov) - var_sde) < 1e-11
    assert abs(float(control.deployed_law(START, 7.0, 0.0).cov) - var_ode) < 1e-9
    if sde is not None and ode is not None:
        assert abs(var_sde - sde) < 1e-6 and abs(var_ode - ode) < 1e-6
    steered = control.deployed_law(START, 7.0, eta)
    assert abs(float(steered.cov) - var_sde) < 1e-9


@pytest.mark.parametrize("deployed", [0.0, 0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("eta", [0.7, 1.0, 2.0])
def test_the_deployment_factor(eta: float, deployed: float) -> None:
    """Any trained eta gives the tilted law at any deployed eta' once scaled; unscaled only eta = 1 or eta' = eta do."""
    control, T = OptimalControl(DATA, QuadraticReward(1.5, 0.6), BETA, VE(1e4), eta), 1e4
    start, target = Gaussian(0.0, T**2), tilt(DATA, QuadraticReward(1.5, 0.6), BETA)
    factor = deployment_factor(eta, deployed)
    scaled, raw = control.deployed_law(start, T, deployed, factor), control.deployed_law(start, T, deployed)
    memory = 5 * (1.3 / T) ** (min(eta, 1.0) ** 2)  # what finite T leaves of the start; 1e-2 at eta = .7
    assert abs(float(scaled.mean - target.mean)) < memory and abs(float(scaled.cov - target.cov)) < memory
    if eta == 1.0 or eta == deployed:
        assert abs(factor - 1) < 1e-15
    else:
        assert abs(float(raw.cov - target.cov)) > 0.04
    assert abs(deployment_factor(eta, 0.0) - (1 + eta**2) / 2) < 1e-15


def test_the_printed_deployment_numbers() -> None:
    """Notes 3d(B): T = 80, eta = 2 and 3 to the ODE, raw and corrected; T = 1e4, range over the eta, eta' table."""
    reward = QuadraticReward(1.5, 0.6)
    start = Gaussian(0.0, 6400.0)
    for eta, raw, corrected in [(2.0, (0.627, 0.916), (0.4805, 0.3656)), (3.0, (0.699, 1.244), (0.4805, 0.3656))]:
        control = OptimalControl(DATA, reward, BETA, VE(80.0), eta)
        for factor, numbers in ((1.0, raw), (deployment_factor(eta, 0.0), corrected)):
            law = control.deployed_law(start, 80.0, 0.0, factor)
            assert abs(float(law.mean) - numbers[0]) < 6e-4 and abs(float(law.cov) - numbers[1]) < 6e-4


@pytest.mark.parametrize("process", [RectifiedFlow(), Cosine(), VP(), VE(6.0)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("eta", [0.6, 1.0, 1.7])
def test_the_value_is_that_of_the_untuned_chain(eta: float, process: object) -> None:
    """V_eta(t, x) = beta log E[exp(r / beta) | x_t], the mean taken by 200 and 400 gDDIM steps (error halves)."""
    control = OptimalControl(SOLID, SOLID_REWARD, BETA, process, eta)
    x, t = torch.tensor([[0.5, -1.0, 0.2]], dtype=F64), 0.6
    errors = []
    for n in (200, 400):
        mean, S = x[0], torch.zeros(3, 3, dtype=F64)
        for kernel in affine_kernels(SOLID.model(process), GDDIM(eta), Grid.uniform(n, start=t)):
            mean, S = kernel.push(mean, S)
        value = BETA * log_mean_exp(SOLID_REWARD, BETA, mean, S)
        errors.append(abs(float(value - control.value(x, torch.tensor(t, dtype=F64)))))
    assert errors[1] < 4e-2 and 1.7 < errors[0] / errors[1] < 2.3


@pytest.mark.parametrize("eta", [0.6, 1.0, 1.7])
def test_the_gradient_is_autograds_and_t6(eta: float) -> None:
    control, t = OptimalControl(SOLID, SOLID_REWARD, BETA, RectifiedFlow(), eta), torch.tensor([0.2, 1.0], dtype=F64)
    x = torch.tensor([[0.5, -1.0, 0.2], [0.1, 0.3, -0.7]], dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(control.value(x, t).sum(), x)
    torch.testing.assert_close(control.value_gradient(x.detach(), t), gradient, rtol=1e-10, atol=1e-10)
    # T6: one dimension, r = -a x^2 / 2, the slope of the optimal score is Theta0 - P / beta.
    one, a = Gaussian(0.0, 1.69), 1.5
    c = VP()(0.4)
    k = float(c.alpha * 1.69 / (c.alpha**2 * 1.69 + c.sigma**2))
    s2 = float(1.69 * c.sigma**2 / (c.alpha**2 * 1.69 + c.sigma**2))
    P = -a * k**2 / (1 + a * s2 / BETA)
    y = torch.tensor([[1.3]], dtype=F64)
    got = OptimalControl(one, QuadraticReward(a, 0.0), BETA, VP()).score_correction(y, torch.tensor(0.4, dtype=F64))
    assert abs(float(got) - P / BETA * 1.3) < 1e-12


@pytest.mark.parametrize("eta", [0.6, 1.7])
def test_the_corrected_score_steers_the_sampler_to_the_trained_law(eta: float) -> None:
    """gDDIM(eta) of ``v + velocity_correction`` from VP's prior: order 1 to ``trained_law`` (100, 200 steps)."""
    control, model = OptimalControl(SOLID, SOLID_REWARD, BETA, VP(0.1, 8.0), eta), SOLID.model(VP(0.1, 8.0))
    expected = control.trained_law(Gaussian([0.0] * 3, torch.eye(3).tolist()))

    def net(x: torch.Tensor, t: torch.Tensor, cond: object) -> torch.Tensor:
        return model.net(x, t, cond) + control.velocity_correction(x, t[0])

    tuned, errors = dataclasses.replace(model, net=net), []
    for n in (100, 200):
        law = end_law(tuned, GDDIM(eta), Grid.uniform(n))
        errors.append(float((law.mean - expected.mean).norm() + (law.cov - expected.cov).norm()))
    assert errors[1] < 0.08 and 1.6 < errors[0] / errors[1] < 2.4


@pytest.mark.parametrize("process", [RectifiedFlow(), Cosine(), VP()], ids=lambda p: type(p).__name__)
def test_the_optimal_velocity_is_that_of_the_tilted_law(process: object) -> None:
    """T9: v + Delta v = velocity of N(m*, S*) at eta = 1, to 1e-10, in three dimensions."""
    control = OptimalControl(SOLID, SOLID_REWARD, BETA, process)
    tilted = tilt(SOLID, SOLID_REWARD, BETA)
    x = torch.randn(6, 3, dtype=F64, generator=torch.Generator().manual_seed(5))
    for t in (0.05, 0.5, 0.95):
        time = torch.tensor(t, dtype=F64)
        moved = velocity(SOLID.model(process), x, time) + control.velocity_correction(x, time)
        torch.testing.assert_close(moved, velocity(tilted.model(process), x, time), rtol=1e-10, atol=1e-10)


def test_the_same_identity_on_a_mixture() -> None:
    """v - (g^2 / 2) grad V_1 / beta is the velocity of the tilted mixture; V_1 also equals its integral."""
    law = Mixture([0.7, 0.3], [[-1.5, 0.3], [1.5, 0.0]], [[[0.25, 0.1], [0.1, 0.3]], [[0.4, 0.0], [0.0, 0.2]]])
    reward, process = QuadraticReward([[0.5, 0.2], [0.2, -0.1]], [0.6, -0.4]), RectifiedFlow()
    x = torch.randn(6, 2, dtype=F64, generator=torch.Generator().manual_seed(6)).requires_grad_(True)
    t = torch.tensor(0.35, dtype=F64)
    value = mixture_value(law, reward, BETA, process, x, t)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    got = law.model(process)(x, t) - process.g2(t) / 2 * gradient / BETA
    torch.testing.assert_close(got, tilt(law, reward, BETA).model(process)(x, t), rtol=1e-10, atol=1e-10)
    axis = torch.linspace(-7, 7, 500, dtype=F64)
    nodes = torch.cartesian_prod(axis, axis)
    c = process(t)
    for i in range(2):
        log_w = law.log_prob(nodes) - (x[i].detach() - c.alpha * nodes).square().sum(1) / (2 * c.sigma**2)
        integral = BETA * (torch.logsumexp(log_w + reward(nodes) / BETA, 0) - torch.logsumexp(log_w, 0))
        assert abs(float(integral - value[i].detach())) < 1e-9


def test_the_policy_evaluation_skip() -> None:
    """Notes 9.4: the untuned value is RM(xhat) - a s^2 / 2, the regularised RM(xhat) / (1 + a s^2 / beta) + ..."""
    law, a, b, t = DATA, 1.5, 0.6, torch.tensor(0.5, dtype=F64)
    x = torch.tensor([[-1.0], [0.4]], dtype=F64)
    process, reward = RectifiedFlow(), QuadraticReward(a, b)
    c = process(t)
    s2 = float(1.69 * c.sigma**2 / (c.alpha**2 * 1.69 + c.sigma**2))
    rm = reward(law.model(process, "x0")(x, t))
    value = OptimalControl(law, reward, BETA, process).value(x, t)
    hold = 1 + a * s2 / BETA
    expected = rm / hold + b**2 * s2 / (2 * BETA * hold) - BETA / 2 * math.log(hold)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_what_is_refused() -> None:
    with pytest.raises(GirsanovError, match="eta > 0"):
        OptimalControl(DATA, LinearReward(1.0), 1.0, VE(), 0.0)
    with pytest.raises(GirsanovError, match="training needs eta > 0"):
        deployment_factor(0.0, 1.0)
