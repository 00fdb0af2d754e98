"""Laws of the forward-process methods."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.advantages import BatchNormalised, Clipped, GroupCentred, GroupNormalised
from girsanov.methods.base import Turn
from girsanov.methods.forward import DECAYS, ERRORS, TIMES, DiffusionNFT, errors, nft
from girsanov.methods.forward.draws import Draw, ForwardBatch
from girsanov.methods.forward.errors import SelfNormalisedX0, VelocityError
from girsanov.methods.forward.old import ConstantDecay, RampDecay
from girsanov.methods.forward.times import GridTimes, LogitNormalTimes, UniformTimes
from girsanov.models import Model
from girsanov.policy import Policy
from girsanov.predictions import convert
from girsanov.problems import Gaussian, LinearReward, QuadraticReward, end_law, tilt
from girsanov.processes import PROCESSES, VP, Cosine, RectifiedFlow
from girsanov.samplers import GDDIM, Heun
from girsanov.types import Cond
from tests.laws.correction import PLANE, collect, descend, gradient, requests, tunable
from tests.laws.mutation import Mutation, check, mutants

F64 = torch.float64
GRID = Grid.uniform(6)
PLAIN = DiffusionNFT(
    reward=QuadraticReward([[0.5, 0.2], [0.2, 0.8]], [0.6, -0.3]),
    grid=GRID,
    advantage=GroupCentred(),
    limit=20.0,
    kappa=0.3,
    error=VelocityError(),
    times=GridTimes(),
    draws=6,
)


# ---- the identity behind the family


@pytest.mark.parametrize(("t", "want"), [(0.2, -0.2), (0.5, -0.32), (0.9, -0.221538)])
def test_the_covariance_identity_of_a_linear_reward_on_gaussian_data(t: float, want: float) -> None:
    """``Cov(r, u | x_t) = -a s^2 t / ((1 - t)^2 s^2 + t^2)`` for N(1, 0.5^2) and r = 0.8 x, from draws and exactly.

    Given x_t, x_0 is Gaussian; 200,000 draws of it, seed 0, z below 4.5. beta = 1, so the tilted velocity differs from
    the reference's by the same number.
    """
    law, a, n = Gaussian(1.0, 0.25), 0.8, 200_000
    process, x = RectifiedFlow(), torch.tensor([[0.7]], dtype=F64)
    time = torch.tensor(t, dtype=F64)
    c = process(time)
    post = law.posterior(x, c.alpha, c.sigma)
    std = float(law.posterior_covs(c.alpha.reshape(1), c.sigma.reshape(1)).sqrt())
    x0 = post.means[0] + std * torch.randn(n, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    u = Draw.of(process, x0, time.expand(n), (x - c.alpha * x0) / c.sigma).target
    products = (a * (x0 - x0.mean()) * (u - u.mean())).squeeze(1)
    assert abs(float(products.mean()) - want) < 4.5 * float(products.std()) / n**0.5
    tilted = tilt(law, LinearReward(a), 1.0)
    shift = tilted.model(process)(x, time) - law.model(process)(x, time)
    assert float(shift) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("name", [n for n in PROCESSES if n != "vp-table"])
def test_a_draw_holds_the_state_the_target_and_the_lever(name: str) -> None:
    process = PROCESSES[name]()
    g = torch.Generator().manual_seed(0)
    x0, eps, v = (torch.randn(5, 3, dtype=F64, generator=g) for _ in range(3))
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=F64)
    draw, c = Draw.of(process, x0, t, eps), process(t)
    torch.testing.assert_close(draw.x, c.alpha[:, None] * x0 + c.sigma[:, None] * eps)
    torch.testing.assert_close(convert(draw.target, draw.x, c, "velocity", "x0"), x0)
    error = convert(v, draw.x, c, "velocity", "x0") - x0
    torch.testing.assert_close(((v - draw.target) * draw.lever[:, None]).abs(), error.abs(), rtol=1e-8, atol=1e-10)


# ---- NFT


def minimise(method: DiffusionNFT, old: Tensor, x0: Tensor, eps: Tensor, t: float, r: Tensor) -> Tensor:
    """The velocity at one point that minimises the mean loss over samples: one Newton step, it is quadratic."""
    n = len(x0)
    draw = Draw.of(RectifiedFlow(), x0, torch.full((n,), t, dtype=F64), eps)
    batch = ForwardBatch(r, r, torch.ones(n, dtype=torch.bool), Cond({}, torch.arange(n)), (draw,))
    free = dataclasses.replace(method, kappa=0.0)

    def total(v: Tensor) -> Tensor:
        return free.loss(v.expand(n, -1), {"old": old.expand(n, -1)}, draw, batch)[0].mean()

    v = torch.zeros_like(old)
    slope, bend = torch.autograd.functional.jacobian(total, v), torch.autograd.functional.hessian(total, v)
    return v - torch.linalg.solve(bend.reshape(2, 2), slope.reshape(2))


def nft_minimiser() -> None:
    g = torch.Generator().manual_seed(3)
    x0, eps, old = (torch.randn(400, 2, dtype=F64, generator=g) for _ in range(3))
    a = torch.randn(400, dtype=F64, generator=g)
    for b, limit in ((1.0, 5.0), (0.1, 5.0), (2.0, 20.0)):
        got = minimise(dataclasses.replace(PLAIN, b=b, limit=limit), old[:1], x0, eps, 0.4, a)
        u, q = eps - x0, (0.5 + 0.5 * (a / limit).clamp(-1, 1))[:, None]
        want = old[:1] + (2 / b) * (q * (u - old[:1])).mean(0) - (1 / b) * (u - old[:1]).mean(0)
        assert torch.allclose(got, want, rtol=1e-9, atol=1e-9)


def test_the_minimiser_of_nft_at_one_point() -> None:
    nft_minimiser()


def unit_gradient() -> None:
    """At v = v_old the gradient is that of ``A |v - u|^2 / d``, for any b and limit."""
    g = torch.Generator().manual_seed(4)
    x0, eps, old = (torch.randn(50, 2, dtype=F64, generator=g) for _ in range(3))
    a = torch.randn(50, dtype=F64, generator=g)
    draw = Draw.of(RectifiedFlow(), x0, torch.full((50,), 0.3, dtype=F64), eps)
    batch = ForwardBatch(a, a, torch.ones(50, dtype=torch.bool), Cond({}, torch.arange(50)), (draw,))
    v = old.clone().requires_grad_(True)
    (want,) = torch.autograd.grad((a * (v - draw.target).square().mean(1)).sum(), v)
    for b, limit in ((1.0, 5.0), (0.1, 8.0)):
        method = dataclasses.replace(PLAIN, b=b, limit=limit, kappa=0.0)
        (got,) = torch.autograd.grad(method.loss(v, {"old": old}, draw, batch)[0].sum(), v)
        assert torch.allclose(got, want, rtol=1e-9, atol=1e-9)


def test_the_first_gradient_of_nft_does_not_depend_on_b_and_limit() -> None:
    unit_gradient()


@mutants(
    [
        Mutation(
            nft.DiffusionNFT,
            "loss",
            "(1 - q) * self.error(old - step",
            "(1 - q) * self.error(old + step",
            nft_minimiser,
        ),
        Mutation(nft.DiffusionNFT, "loss", "0.5 + 0.5 *", "1.0 + 1.0 *", nft_minimiser),
        Mutation(nft.DiffusionNFT, "loss", "self.limit / self.b * pair", "pair", unit_gradient),
    ]
)
def test_mutations_are_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)


def test_nft_converges_to_its_fixed_point() -> None:
    """Linear reward a x, kappa = beta, centred advantages: the tilted law, mean within 3 % of the way and beyond.

    N(0.8, 1.3^2), 8 Heun steps, 256 samples x 8 draws, seed 0, mean of the last 40 of 100 iterations.
    """
    law, reward, kappa, grid = Gaussian(0.8, 1.69), LinearReward(0.8), 2.0, Grid.uniform(8)
    model = law.model(RectifiedFlow())
    policy = tunable(model, grid)
    method = dataclasses.replace(
        PLAIN, reward=reward, kappa=kappa, grid=grid, draws=8, limit=10.0, decay=RampDecay(0.02, 0.5)
    )
    descend(policy, method, requests(256), iterations=100, lr=0.1, tail=40)
    got, start = end_law(policy.view("ema"), Heun(), grid), end_law(model, Heun(), grid)
    want = tilt(law, reward, kappa)
    assert float(got.mean - start.mean) == pytest.approx(float(want.mean - law.mean), rel=0.03)
    assert float(got.cov / start.cov) == pytest.approx(1.0, rel=0.03)


def test_the_published_weight_is_another_loss_with_the_same_sign() -> None:
    """``|x0(v) - x0|^2 / sg mean |x0(v) - x0|`` written out as published for rectified flow, ``x0(v) = x - t v``."""
    g = torch.Generator().manual_seed(0)
    x0, eps, v = (torch.randn(7, 2, 3, 3, dtype=torch.float32, generator=g) for _ in range(3))
    t = torch.linspace(0.1, 0.9, 7, dtype=F64)
    draw = Draw.of(RectifiedFlow(), x0, t, eps)
    hat = draw.x - t.float().reshape(-1, 1, 1, 1) * v
    weight = (hat.double() - x0.double()).abs().mean(dim=(1, 2, 3), keepdim=True).clip(min=1e-5)
    want = ((hat - x0) ** 2 / weight).mean(dim=(1, 2, 3))
    got = SelfNormalisedX0()(v, draw)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        assert x.dtype == t.dtype == torch.float32
        return self.layer(x)


@pytest.mark.parametrize("error", list(ERRORS))
@pytest.mark.parametrize("process", [RectifiedFlow(), Cosine(), VP()], ids=lambda p: type(p).__name__)
def test_everything_stays_in_float32(error: str, process: object) -> None:
    """The loss, its gradient and every draw: nothing promotes to float64, also on diffusion models."""
    torch.manual_seed(0)
    prediction = "velocity" if isinstance(process, RectifiedFlow) else "eps"
    policy = Policy(Model(Tiny(), process, prediction, (3,)))
    grid = Grid.uniform(4, start=0.99, end=0.01)
    method = DiffusionNFT(reward=LinearReward([1.0, 0.0, 0.0]), sampler=GDDIM(0.5), grid=grid, error=ERRORS[error]())
    batch = collect(method, policy, requests(8, 4))
    assert batch.advantage.dtype == torch.float32
    for draw in batch.draws:
        assert draw.x.dtype == draw.target.dtype == torch.float32
    for chunk in method.losses(policy, batch, {}):
        assert chunk.loss.dtype == torch.float32 and bool(chunk.loss.isfinite())
    assert gradient(policy, method, batch).dtype == torch.float32


# ---- the old policy


def test_the_old_policy_samples_and_follows_once_an_iteration() -> None:
    policy = tunable(PLANE.model(RectifiedFlow()), GRID)
    method = dataclasses.replace(PLAIN, decay=ConstantDecay(0.75))
    state = method.setup(policy)
    first = method.collect(policy, requests(8, 4), state, Turn(0, 0))
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(1.0)
    again = method.collect(policy, requests(8, 4), state, Turn(0, 0))
    assert torch.equal(first.draws[0].x, again.draws[0].x)  # the current policy has moved, the old one has not
    method.collect(policy, requests(8, 4), state, Turn(0, 1))
    assert all(float(w.flatten()[0]) == 0.25 for w in policy.copies["old"].values())
    method.collect(policy, requests(8, 4), state, Turn(0, 1))  # asked twice, moved once
    assert all(float(w.flatten()[0]) == 0.25 for w in policy.copies["old"].values())


def test_the_published_decays() -> None:
    plain, text = RampDecay(), RampDecay(0.0075, 0.999, 75)
    assert [plain(i) for i in (0, 100, 500, 5000)] == [0.0, pytest.approx(0.1), 0.5, 0.5]
    assert [text(i) for i in (0, 75, 76, 1000)] == [0.0, 0.0, pytest.approx(0.0075), 0.999]
    assert all(0 <= make()(i) < 1 for make in DECAYS.values() for i in range(0, 3000, 100))


def test_an_old_policy_that_equals_the_current_one_shows() -> None:
    policy = tunable(PLANE.model(RectifiedFlow()), GRID, scale=0.1)
    batch = collect(PLAIN, policy, requests(16, 4))
    same = [float(c.metrics["old_gap"]) for c in PLAIN.losses(policy, batch, {})]
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.1)
    moved = [float(c.metrics["old_gap"]) for c in PLAIN.losses(policy, batch, {})]
    assert same == [0.0] * 6 and min(moved) > 0.05
    assert all(float(c.metrics["signal"]) > 0 for c in PLAIN.losses(policy, batch, {}))


# ---- the base


def test_the_loss_repeats_to_the_bit_and_micro_batches_add_up() -> None:
    policy = tunable(PLANE.model(RectifiedFlow()), GRID, scale=0.2)
    method = dataclasses.replace(PLAIN, advantage=Clipped(GroupNormalised(), 5.0), error=SelfNormalisedX0())
    batch = collect(method, policy, requests(24, 4))
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.1)
    whole = gradient(policy, method, batch)
    assert torch.equal(whole, gradient(policy, method, batch))
    rows = torch.arange(24).split(7)
    parts = sum(gradient(policy, method, batch.take(r)) * len(r) / 24 for r in rows)
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-13)


def test_equal_rewards_give_no_gradient() -> None:
    class Flat(QuadraticReward):
        def __call__(self, x: Tensor, prompts: object = None) -> Tensor:
            return torch.ones(len(x), dtype=x.dtype)

    policy = tunable(PLANE.model(RectifiedFlow()), GRID, scale=0.2)
    for advantage in (GroupCentred(), BatchNormalised()):
        method = dataclasses.replace(PLAIN, reward=Flat(PLAIN.reward.A, PLAIN.reward.b), advantage=advantage)
        batch = collect(method, policy, requests(8, 4))
        assert float(batch.metrics()["zero_variance"]) == 1.0
        assert float(gradient(policy, method, batch).abs().max()) == 0.0


def test_the_draws_of_a_sample_spread_over_time() -> None:
    u = torch.rand(1000, dtype=F64, generator=torch.Generator().manual_seed(0))
    for make in TIMES.values():
        for k in range(6):
            t = make()(u, k, 6, GRID)
            assert t.dtype == F64 and bool(((t >= 0) & (t <= 1)).all())
    assert all(GridTimes()(u, k, 6, GRID).unique().tolist() == [float(GRID.ts[k])] for k in range(6))
    assert all(
        float(UniformTimes(0, 1)(u, k, 4, GRID).mean()) == pytest.approx((k + 0.5) / 4, abs=0.01) for k in range(4)
    )
    middle = LogitNormalTimes(0.0, 1.0)(u, 0, 1, GRID)
    assert float(torch.logit(middle).std()) == pytest.approx(1.0, abs=0.1)
    assert GridTimes(skip=2)(u, 0, 1, GRID).min() == GRID.ts[3]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: dataclasses.replace(PLAIN, b=0.0),
            "NFT needs b > 0, limit > 0 and kappa >= 0, not 0.0, 20.0 and 0.3",
        ),
        (lambda: ConstantDecay(1.0), "a decay lies in [0, 1), not 1.0"),
        (lambda: RampDecay(cap=1.0), "a decay rises (slope >= 0) to a cap in [0, 1), not 0.001 and 1.0"),
        (lambda: UniformTimes(0.5, 0.5), "training times lie in [0, 1], low below high, not 0.5 and 0.5"),
        (
            lambda: GridTimes(skip=6)(torch.zeros(2, dtype=F64), 0, 1, GRID),
            "skip = 6 leaves no step of the grid's 6: lower it",
        ),
    ],
)
def test_errors_say_what_to_do(make: object, sentence: str) -> None:
    with pytest.raises(GirsanovError) as error:
        make()
    assert str(error.value) == sentence


def test_the_mean_square_is_over_the_data_dimensions() -> None:
    x = torch.arange(12.0).reshape(2, 3, 2)
    assert errors.mean_square(x).tolist() == [pytest.approx(55 / 6), pytest.approx(451 / 6)]
