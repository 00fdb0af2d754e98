"""Losses and densities against the published formulas, written out here, on fixed inputs in float32.

Seed 0; the tolerance is float32 rounding of sums over 48 numbers (1e-5 relative) unless said otherwise.
"""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from girsanov.grids import Grid
from girsanov.kernels import Kernel
from girsanov.methods.advantages import GlobalStd, GroupNormalised
from girsanov.methods.base import Turn
from girsanov.methods.forward import DiffusionNFT
from girsanov.methods.forward.draws import Draw, ForwardBatch
from girsanov.methods.forward.errors import SelfNormalisedX0
from girsanov.methods.policy_gradient.grpo import FlowGRPO
from girsanov.models import Model
from girsanov.policy import Policy
from girsanov.problems import LinearReward
from girsanov.processes import VP, RectifiedFlow
from girsanov.samplers import CPS, GDDIM, DanceSDE, FlowSDE, Sampler
from girsanov.types import Cond
from tests.laws.correction import collect, requests

SHAPE = (3, 4, 4)
F32 = torch.float32
Published = Callable[[Tensor, Tensor, float, float], tuple[Tensor, float]]


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 48)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        return self.layer(x.flatten(1)).view_as(x) * (1 + t.reshape(-1, 1, 1, 1))


def small_policy() -> Policy:
    torch.manual_seed(0)
    return Policy(Model(Linear(), RectifiedFlow(), "velocity", SHAPE))


def flow_sde(x: Tensor, v: Tensor, t: float, s: float, level: float) -> tuple[Tensor, float]:
    """Mean and standard deviation of Flow-GRPO's step, as published."""
    sigma, dt = level * math.sqrt(t / (1 - (s if t == 1 else t))), s - t
    mean = x * (1 + sigma**2 / (2 * t) * dt) + v * (1 + sigma**2 * (1 - t) / (2 * t)) * dt
    return mean, sigma * math.sqrt(-dt)


def published_log_prob(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """The mean over dimensions, constants kept."""
    terms = -((x - mean) ** 2) / (2 * std**2) - math.log(std) - 0.5 * math.log(2 * math.pi)
    return terms.mean(dim=(1, 2, 3))


@pytest.mark.parametrize("k", [0, 3, 7])
def test_flow_sde_step_density_and_kl(k: int) -> None:
    policy, g = small_policy(), torch.Generator().manual_seed(0)
    step = Grid.uniform(8)[k]
    x, z = (torch.randn(6, *SHAPE, generator=g) for _ in range(2))
    with torch.no_grad():
        kernel = FlowSDE(0.7).kernel(policy.view(), x, step)[0]
        v = policy.view()(x, step.t)
    mean, std = flow_sde(x, v, float(step.t), float(step.s), 0.7)
    torch.testing.assert_close(kernel.mean, mean, rtol=1e-5, atol=1e-5)
    assert float(kernel.std) == pytest.approx(std, rel=1e-12)
    drawn = kernel.sample(z)
    got, want = kernel.log_prob(drawn, "mean"), published_log_prob(drawn, mean, std)
    torch.testing.assert_close(got.to(F32), want, rtol=1e-4, atol=1e-4)
    if k > 0:  # KL = (|dt| / 2) (1/sigma + sigma (1 - t) / (2 t))^2 |dv|^2
        t, dt = float(step.t), -float(step.h)
        sigma = 0.7 * math.sqrt(t / (1 - t))
        dv = 0.1 * torch.randn(6, *SHAPE, generator=g, dtype=torch.float64)
        other = kernel.mean.double() + float(kernel.gain) * dv
        want = dt / 2 * (1 / sigma + sigma * (1 - t) / (2 * t)) ** 2 * dv.square().sum((1, 2, 3))
        exact = Kernel(kernel.mean.double(), kernel.std, True)
        torch.testing.assert_close(exact.kl(other), want, rtol=1e-9, atol=0)


def dance(x: Tensor, v: Tensor, t: float, s: float) -> tuple[Tensor, float]:
    """DanceGRPO's step with eta = 0.3: the ODE plus the score of the denoised prediction."""
    denoised, dt = x - t * v, s - t
    score = -(x - (1 - t) * denoised) / t**2
    return x + v * dt - 0.5 * 0.3**2 * dt * score, 0.3 * math.sqrt(-dt)


def cps(x: Tensor, v: Tensor, t: float, s: float) -> tuple[Tensor, float]:
    """Flow-CPS's step with eta = 0.7: predictions of data and noise, recombined on a circle of radius s."""
    std = s * math.sin(0.7 * math.pi / 2)
    return (x - t * v) * (1 - s) + (x + (1 - t) * v) * math.sqrt(s**2 - std**2), std


@pytest.mark.parametrize("k", [0, 3, 6])
@pytest.mark.parametrize(("sampler", "published"), [(DanceSDE(0.3), dance), (CPS(0.7), cps)])
def test_dance_and_cps_steps_and_densities(sampler: Sampler, published: Published, k: int) -> None:
    """Float32, k-th of 8 steps; Flow-CPS's log-prob ``-mean (x - mean)^2`` is the density's up to its 1 / (2 std^2)."""
    policy, g = small_policy(), torch.Generator().manual_seed(0)
    step = Grid.uniform(8)[k]
    x, z = (torch.randn(6, *SHAPE, generator=g) for _ in range(2))
    with torch.no_grad():
        kernel = sampler.kernel(policy.view(), x, step)[0]
        mean, std = published(x, policy.view()(x, step.t), float(step.t), float(step.s))
    torch.testing.assert_close(kernel.mean, mean, rtol=1e-5, atol=1e-5)
    assert float(kernel.std) == pytest.approx(std, rel=1e-6)
    drawn = kernel.sample(z)
    got = kernel.log_prob(drawn, "mean")
    torch.testing.assert_close(got.to(F32), published_log_prob(drawn, mean, std), rtol=1e-4, atol=1e-4)
    simple = -((drawn - mean) ** 2).mean(dim=(1, 2, 3))
    torch.testing.assert_close((got - got[0]).to(F32), (simple - simple[0]) / (2 * std**2), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("k", [0, 5, 8])
def test_ddim_step_and_density_of_ddpo(k: int) -> None:
    """eta = 1 on a table of alphas, eps-prediction: ``std^2 = (1 - a_s) / (1 - a_t) (1 - a_t / a_s)``, float32."""
    torch.manual_seed(0)
    process, g = VP(), torch.Generator().manual_seed(0)
    model = Model(Linear(), process, "eps", SHAPE)
    step = Grid.uniform(10)[k]
    x, z = (torch.randn(6, *SHAPE, generator=g) for _ in range(2))
    with torch.no_grad():
        kernel = GDDIM(1.0).kernel(model, x, step)[0]
        eps = model(x, step.t)
    a_t, a_s = (float(process(t).alpha) ** 2 for t in (step.t, step.s))
    std = math.sqrt((1 - a_s) / (1 - a_t) * (1 - a_t / a_s))
    denoised = (x.double() - math.sqrt(1 - a_t) * eps.double()) / math.sqrt(a_t)  # 1 / sqrt(a_t) is 150 at t = 1
    mean = (math.sqrt(a_s) * denoised + math.sqrt(1 - a_s - std**2) * eps.double()).to(F32)
    torch.testing.assert_close(kernel.mean, mean, rtol=1e-5, atol=1e-5)
    assert float(kernel.std) == pytest.approx(std, rel=1e-9)
    drawn = kernel.sample(z)
    got, want = kernel.log_prob(drawn, "mean"), published_log_prob(drawn, mean, std)
    torch.testing.assert_close(got.to(F32), want, rtol=1e-4, atol=1e-4)


def test_the_loss_of_flow_grpo() -> None:
    """Ratio of mean log-probs, clipped at 1e-4, advantages over the std of the batch clipped to +-5, KL without dt."""
    policy = small_policy()
    method = FlowGRPO(reward=LinearReward([0.1] * 48), grid=Grid.uniform(5))
    batch = method.anchor(policy, collect(method, policy, requests(16, 4)), {})
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(2e-4 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    r = batch.reward.double().view(4, 4)
    advantage = ((r - r.mean(1, keepdim=True)) / (r.std(correction=0) + 1e-4)).clamp(-5, 5).flatten()
    clipped = 0
    for part, chunk in zip(batch.parts, method.losses(policy, batch, {}), strict=True):
        tr = part.tr
        t, s = float(tr.step.t), float(tr.step.s)
        new, std = flow_sde(tr.x_t, policy.view()(tr.x_t, tr.step.t).detach(), t, s, 0.7)
        reference = flow_sde(tr.x_t, policy.view("reference")(tr.x_t, tr.step.t), t, s, 0.7)[0]
        x, old, new, reference = (v.double() for v in (tr.x_s, part.old, new, reference))
        rho = (published_log_prob(x, new, std) - published_log_prob(x, old, std)).exp()
        worse = torch.maximum(-advantage * rho, -advantage * rho.clamp(1 - 1e-4, 1 + 1e-4))
        kl = ((new - reference) ** 2).mean(dim=(1, 2, 3)) / (2 * (std / math.sqrt(t - s)) ** 2)
        want = (worse.mean() + 0.04 * kl.mean()) / len(batch.parts)
        # Advantages cancel in the mean, so the scale is that of a single term.
        assert float(chunk.loss.detach()) == pytest.approx(float(want), abs=1e-6 / len(batch.parts))
        clipped += float(chunk.metrics["clip_fraction"])
    assert 0 < clipped < len(batch.parts)
    assert method.advantage.inner == GlobalStd(1e-4)


def test_the_loss_of_diffusion_nft() -> None:
    """``5/b (r e+ + (1 - r) e-) + 1e-4 |v - v_ref|^2`` with the self-normalised x0 error, as in the public code."""
    g = torch.Generator().manual_seed(0)
    x0, eps, v, old, reference = (torch.randn(9, *SHAPE, generator=g) for _ in range(5))
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    a, b = 3 * torch.randn(9, generator=g), 0.5
    draw = Draw.of(RectifiedFlow(), x0, t, eps)
    batch = ForwardBatch(a, a, torch.ones(9, dtype=torch.bool), Cond({}, torch.arange(9)), (draw,))
    method = DiffusionNFT(reward=LinearReward([0.0] * 48), b=b, error=SelfNormalisedX0(), kappa=1e-4)
    got, _ = method.loss(v, {"old": old, "reference": reference}, draw, batch)

    x_t, time = draw.x, t.to(F32).reshape(-1, 1, 1, 1)
    r = (a.clamp(-5, 5) / 5) / 2 + 0.5
    sides = []
    for sign in (1, -1):
        implicit = old + sign * b * (v - old)
        hat = x_t - time * implicit
        weight = (hat.double() - x0.double()).abs().mean(dim=(1, 2, 3), keepdim=True).clip(min=1e-5)
        sides.append(((hat - x0) ** 2 / weight).mean(dim=(1, 2, 3)))
    want = 5 * (r * sides[0] / b + (1 - r) * sides[1] / b) + 1e-4 * ((v - reference) ** 2).mean(dim=(1, 2, 3))
    assert got.dtype == F32 and want.dtype == torch.float64  # the published weight promotes the loss
    torch.testing.assert_close(got, want.to(F32), rtol=1e-5, atol=1e-5)


def test_per_group_std_of_grpo() -> None:
    r = torch.tensor([1.0, 2.0, 4.0, 0.0, 0.0, 8.0])
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    got, _ = GroupNormalised(1e-8)(r, group, {}, Turn(0, 0))
    want = torch.cat([(g - g.mean()) / (g.std(correction=0) + 1e-8) for g in r.double().view(2, 3)])
    torch.testing.assert_close(got, want)


def test_micro_batches_in_float32_keep_the_ratio_at_one() -> None:
    """Another batch shape may round differently: the anchor scores the layout of training, so the ratio stays 1."""
    policy = small_policy()
    method = dataclasses.replace(FlowGRPO(reward=LinearReward([0.1] * 48), grid=Grid.uniform(5)), kl=None)
    batch = collect(method, policy, requests(16, 4))
    for rows in torch.arange(16).split(3):
        micro = method.anchor(policy, batch.take(rows), {})
        for chunk in method.losses(policy, micro, {}):
            assert float(chunk.metrics["ratio_min"]) == float(chunk.metrics["ratio_max"]) == 1.0
            assert float(chunk.metrics["sampler_gap"]) < 1e-3
