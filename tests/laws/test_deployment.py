"""The deployment theorem: trained at eta, deployed at eta', on Gaussians and mixtures, in the limit and on grids."""

import dataclasses
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from girsanov.adapters.lora import add_lora
from girsanov.deployment import Deployed, check_memory, deploy_at, deployment_factor
from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.models import Model
from girsanov.policy import Policy
from girsanov.predictions import ROWS, convert
from girsanov.problems import (
    Gaussian,
    Limit,
    LinearReward,
    Mixture,
    OptimalControl,
    QuadraticReward,
    affine_kernels,
    chain_law,
    expected_reward,
    path_kl_limit,
    per_step_kl_limit,
    tilt,
    tuned_model,
)
from girsanov.problems.moments import prior_moments
from girsanov.processes import VE, VP, RectifiedFlow, VPTable
from girsanov.samplers import GDDIM
from girsanov.theory import Line, line_optimum
from girsanov.theory.gap import tuned_laws
from girsanov.theory.line import integrate

F64 = torch.float64
SOLID = Gaussian([0.3, -0.4, 0.9], [[1.0, 0.3, 0.1], [0.3, 0.8, -0.2], [0.1, -0.2, 0.5]])
SOLID_REWARD = QuadraticReward([[0.8, 0.1, 0.3], [0.1, 0.5, -0.2], [0.3, -0.2, 0.9]], [0.4, -0.2, 0.1])
TWO = Mixture([0.7, 0.3], [[-1.5], [1.5]], [[[0.25]], [[0.25]]])


def distance(law: Gaussian, target: Gaussian) -> float:
    return max(float((law.mean - target.mean).abs().max()), float((law.cov - target.cov).abs().max()))


@pytest.mark.parametrize("deployed", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("eta", [0.5, 1.0, 1.5, 3.0])
def test_gaussian_data_from_pure_noise(eta: float, deployed: float) -> None:
    """Three dimensions, full covariances, rectified flow: the tilted law to 1e-9, for eta < 1 too."""
    control = OptimalControl(SOLID, SOLID_REWARD, 0.7, RectifiedFlow(), eta)
    target, c = tilt(SOLID, SOLID_REWARD, 0.7), deployment_factor(eta, deployed)
    assert distance(tuned_laws(control, None, deployed, c)[1], target) < 1e-9
    raw = distance(tuned_laws(control, None, deployed)[1], target)
    assert raw < 1e-9 if c == 1 else raw > 1e-3


def test_the_two_forms_of_the_factor() -> None:
    for eta in (0.3, 0.7, 1.0, 2.0):
        for deployed in (0.0, 0.4, 1.0, 3.0):
            e, d = eta**2, deployed**2
            assert abs(deployment_factor(eta, deployed) - 1 - (e - 1) * (e - d) / (2 * e * (1 + d))) < 1e-14


@pytest.mark.parametrize(("eta", "deployed"), [(0.7, 0.0), (0.7, 2.0), (1.5, 0.0), (2.0, 0.0), (2.0, 0.5), (2.0, 1.0)])
def test_finite_steps_on_a_gaussian(eta: float, deployed: float) -> None:
    """The optimum of the grid, deployed on the grid: corrected goes to the tilted law as steps double, raw does not."""
    law, reward = Gaussian(0.8, 1.69), QuadraticReward(1.5, 0.6)
    control, c = OptimalControl(law, reward, 0.7, RectifiedFlow(), eta), deployment_factor(eta, deployed)
    target = tilt(law, reward, 0.7)
    raw, corrected = (
        [distance(tuned_laws(control, Grid.uniform(n), deployed, f)[1], target) for n in (20, 80, 320)]
        for f in (1.0, c)
    )
    assert corrected[0] > 1.5 * corrected[1] > 2.25 * corrected[2] and corrected[2] < 0.04
    assert raw[2] > 0.05 and raw[2] > 3 * corrected[2]


@pytest.mark.parametrize(("eta", "deployed"), [(0.7, 0.0), (2.0, 0.0), (2.0, 1.0)])
def test_a_mixture_with_a_wavy_reward(eta: float, deployed: float) -> None:
    """r = sin 3x + x / 2 on two modes. The grid's optimum by quadrature; errors extrapolated from 40 and 80 steps.

    Three expectations under the deployed sampler against the tilted law. Corrected: below .09; raw: three times it.
    """

    def reward(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(3 * x[:, 0]) + x[:, 0] / 2

    tests = (lambda x: x[:, 0], lambda x: x[:, 0] ** 2, reward)
    Z = integrate(lambda x: reward(x).exp(), TWO)
    target = [integrate(lambda x, f=f: f(x) * reward(x).exp(), TWO) / Z for f in tests]
    model, errors = TWO.model(RectifiedFlow()), {}
    for n in (40, 80):
        tuned = line_optimum(Line(model, GDDIM(eta), Grid.uniform(n), 7.0, points=401), reward, 1.0)
        for c in (1.0, deployment_factor(eta, deployed)):
            line = dataclasses.replace(tuned.line, model=Deployed(tuned.model, model, c), sampler=GDDIM(deployed))
            errors[c, n] = [line.expect(f) - v for f, v in zip(tests, target, strict=True)]
    raw, corrected = (
        max(abs(2 * fine - coarse) for coarse, fine in zip(errors[c, 40], errors[c, 80], strict=True))
        for c in (1.0, deployment_factor(eta, deployed))
    )
    assert corrected < 0.09 and raw > 3 * corrected


@pytest.mark.parametrize("kind", list(ROWS))
def test_any_prediction_kind(kind: str) -> None:
    """Scaling the raw difference is scaling the score's: one model, converted to each kind."""
    process, t = VP(), torch.tensor(0.6, dtype=F64)
    tuned, reference = (law.model(process, kind) for law in (tilt(SOLID, SOLID_REWARD, 0.7), SOLID))
    x = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    c = process(t)
    got = convert(Deployed(tuned, reference, 1.7)(x, t), x, c, kind, "score")
    scores = [law.score(x, c) for law in (tilt(SOLID, SOLID_REWARD, 0.7), SOLID)]
    torch.testing.assert_close(got, scores[1] + 1.7 * (scores[0] - scores[1]), rtol=1e-10, atol=1e-10)


class Affine(nn.Module):
    """A network that is linear in its weights, so that scaling them is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2, dtype=F64)

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: object = None) -> torch.Tensor:
        return self.layer(x) * t.unsqueeze(1)


class Bent(Affine):
    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: object = None) -> torch.Tensor:
        return torch.tanh(self.layer(x)) * t.unsqueeze(1)


def tuned_policy(net: nn.Module, size: float) -> Policy:
    torch.manual_seed(3)
    policy = Policy(Model(net, RectifiedFlow(), "velocity", (2,)))
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(size * torch.randn(p.shape, dtype=F64, generator=torch.Generator().manual_seed(4)))
    return policy


def test_one_pass_and_two() -> None:
    """Equal for networks linear in their weights; else they differ by the square of what was learned."""
    x, t = torch.randn(6, 2, dtype=F64, generator=torch.Generator().manual_seed(2)), torch.tensor(0.5, dtype=F64)

    def difference(net: nn.Module, size: float) -> float:
        policy = tuned_policy(net, size)
        exact, cheap = (deploy_at(policy, 2.0, 0.0, exact=e)(x, t) for e in (True, False))
        reference = policy.view("reference")(x, t)
        torch.testing.assert_close(exact, reference + 2.5 * (policy.view()(x, t) - reference))
        return float((exact - cheap).detach().abs().max())

    assert difference(Affine(), 0.5) < 1e-14
    ratio = difference(Bent(), 0.02) / difference(Bent(), 0.01)
    assert 3.3 < ratio < 4.7


def test_with_adapters() -> None:
    """LoRA: the reference of the two passes is the base network to the bit; one pass scales the adapters."""
    torch.manual_seed(0)
    net = Bent().float()
    x, t = torch.randn(6, 2, generator=torch.Generator().manual_seed(2)), torch.tensor(0.5, dtype=F64)
    base = Model(net, RectifiedFlow(), "velocity", (2,))(x, t).detach()
    add_lora(net, rank=2)
    policy = Policy(Model(net, RectifiedFlow(), "velocity", (2,)))
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "lora_B" in name:
                p.add_(0.3)
    exact, cheap = (deploy_at(policy, 2.0, 0.0, exact=e) for e in (True, False))
    assert isinstance(exact, Deployed) and torch.equal(exact.reference(x, t), base)
    torch.testing.assert_close(exact(x, t), base + 2.5 * (policy.view()(x, t) - base))
    cheap_output = cheap(x, t)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "lora_B" in name:
                p.mul_(2.5)
    torch.testing.assert_close(cheap_output, policy.view()(x, t))


def test_it_is_the_policy_itself_where_c_is_one() -> None:
    policy = tuned_policy(Affine(), 0.5)
    assert deploy_at(policy, 1.0, 0.0) is policy.model and deploy_at(policy, 2.0, 2.0) is policy.model
    policy.keep_copy("ema")
    assert isinstance(deploy_at(policy, 2.0, 0.0, name="ema"), Deployed)


@pytest.mark.parametrize("eta", [0.4, 0.6, 0.8])
@pytest.mark.parametrize("T", [3.0, 30.0, 300.0])
def test_the_refusal_is_where_scaling_stops_to_help(eta: float, T: float) -> None:
    """Unit data, linear reward, VE(T) to the ODE: refused exactly if the corrected mean is the worse one."""
    control = OptimalControl(Gaussian(0.0, 1.0), QuadraticReward(0.0, 0.6), 0.7, VE(T), eta)
    c, due = deployment_factor(eta, 0.0), 0.6 / 0.7
    raw, corrected = (abs(float(tuned_laws(control, None, 0.0, f)[1].mean) - due) for f in (1.0, c))
    policy = Policy(dataclasses.replace(tuned_policy(Affine(), 0.1).model, process=VE(T)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if corrected >= raw:
            with pytest.raises(GirsanovError, match="remembers its start"):
                deploy_at(policy, eta, 0.0)
        else:
            assert isinstance(deploy_at(policy, eta, 0.0), Deployed)


def test_coarse_grids_are_reported() -> None:
    """Two modes, reward x, eta = .7 to the ODE: warned at 20 steps, where the raw optimum is nearer; silent at 80.

    The expectations are those of each grid's exact optimum.
    """
    model, reward = TWO.model(RectifiedFlow()), LinearReward([1.0])
    target, c = float(expected_reward(tilt(TWO, reward, 1.0), reward)), deployment_factor(0.7, 0.0)
    for n, warned in ((20, True), (80, False)):
        grid = Grid.uniform(n)
        tuned = line_optimum(Line(model, GDDIM(0.7), grid, 7.0, points=401), reward, 1.0)
        raw, corrected = (
            Line(Deployed(tuned.model, model, f), GDDIM(0.0), grid, 7.0, points=401).expect(reward) for f in (1.0, c)
        )
        assert (abs(corrected - target) > abs(raw - target)) == warned
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            deploy_at(tuned_policy(Affine(), 0.1), 0.7, 0.0, grid=grid)
            deploy_at(tuned_policy(Affine(), 0.1), 2.0, 0.0, grid=grid)
        assert len(seen) == warned


def test_memory_is_reported() -> None:
    with pytest.warns(UserWarning, match="approximate"):
        check_memory(0.1, 1.6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_memory(0.9, 1.0)
        check_memory(0.01, 2.5)
    table = Policy(dataclasses.replace(tuned_policy(Affine(), 0.1).model, process=VPTable.stable_diffusion()))
    with pytest.raises(GirsanovError, match="train with eta >= 1"):
        deploy_at(table, 0.5, 0.0)
    deploy_at(table, 0.5, 0.0, memory=0.0)
    with pytest.raises(GirsanovError, match="training needs eta > 0"):
        deploy_at(table, 0.0, 0.0)
    with pytest.raises(GirsanovError, match="differ in prediction"):
        Deployed(SOLID.model(VP(), "eps"), SOLID.model(VP(), "v"), 1.5)


@pytest.mark.parametrize("eta", [0.7, 1.0, 2.0])
def test_a_kl_a_step_learns_something_else(eta: float) -> None:
    """The fixed point of a KL a step, 160 steps: corrected or not, the ODE misses the law that was trained.

    At eta = 1 the factor is 1 and the path KL's optimum transfers to .005; the other one is .09 off.
    """
    law, reward, grid = Gaussian(0.8, 1.69), QuadraticReward(1.5, 0.6), Grid.uniform(160)
    model, c = law.model(RectifiedFlow()), deployment_factor(eta, 0.0)
    kernels, start = affine_kernels(model, GDDIM(eta), grid), prior_moments(model)

    def miss(limit_of: Callable[..., Limit]) -> float:
        limit = limit_of(kernels, start, reward, 0.7)
        tuned = tuned_model(model, grid, kernels, limit.kernels)
        ode = chain_law(affine_kernels(Deployed(tuned, model, c), GDDIM(0.0), grid), *start)
        return distance(ode, limit.law)

    assert miss(path_kl_limit) < 0.02 and miss(per_step_kl_limit) > 0.08
