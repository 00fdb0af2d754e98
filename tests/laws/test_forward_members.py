"""Laws of the other forward-process methods: fixed points, minimisers, first gradients, what tells them apart."""

import dataclasses

import pytest
import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods import METHODS
from girsanov.methods.advantages import GroupCentred
from girsanov.methods.base import Turn
from girsanov.methods.forward import AWM, CRD, DGPO, FPO, ORW, RAM, RVM, DiffusionNFT, grouped, orw, ram, ratio, rvm
from girsanov.methods.forward.base import ForwardMethod
from girsanov.methods.forward.draws import Draw, ForwardBatch
from girsanov.methods.forward.errors import VelocityError, mean_square
from girsanov.methods.forward.times import GridTimes
from girsanov.methods.forward.weighting import Huber, Plain
from girsanov.models import velocity
from girsanov.policy import Policy
from girsanov.problems import Gaussian, LinearReward, QuadraticReward, tilt
from girsanov.processes import RectifiedFlow
from girsanov.rewards.function import FunctionReward
from girsanov.surrogates import Clip, TrustMask
from girsanov.types import Cond
from tests.laws.correction import PLANE, FastTurn, collect, gradient, requests, tunable
from tests.laws.mutation import Mutation, check, mutants

F64 = torch.float64
GRID = Grid.uniform(5)
REWARD = QuadraticReward([[0.5, 0.2], [0.2, 0.8]], [0.6, -0.3])
MEMBERS = {name: cls for name, cls in METHODS.items() if issubclass(cls, ForwardMethod)}
COMMON = {"reward": REWARD, "grid": GRID, "advantage": GroupCentred(), "times": GridTimes(), "draws": 5}


def policy() -> Policy:
    return tunable(PLANE.model(RectifiedFlow()), GRID, scale=0.2)


# ---- fixed points


LAW, A, BETA = Gaussian(0.8, 1.69), 0.7, 1.4
AT_TILT = {
    "nft": DiffusionNFT(**COMMON | {"error": VelocityError(), "kappa": BETA, "limit": 20.0}),
    "ram": RAM(**COMMON, beta=BETA),
    "rvm": RVM(**COMMON | {"scale": 0.2, "b": 0.2 * BETA}),
    "fpo": FPO(**COMMON, kappa=BETA),
    "crd": CRD(**COMMON | {"error": VelocityError(), "kappa": 2 * BETA}),
}


def tuned_to(target: Gaussian) -> Policy:
    """A policy that is the exact velocity of the target on the grid (a shift of the mean), and so is its old copy."""
    tuned, zero = tunable(LAW.model(RectifiedFlow()), GRID), torch.zeros(1, 1, dtype=F64)
    with torch.no_grad():
        for k, t in enumerate(GRID.ts):
            tuned.net.c[k] = (target.model(RectifiedFlow())(zero, t) - LAW.model(RectifiedFlow())(zero, t))[0]
    tuned.keep_copy("old")
    return tuned


def samples_of(law: Gaussian, n: int, index: int) -> ForwardBatch:
    """Exact samples with the advantage ``A (x - E x)``, noised to every grid time."""
    turn = FastTurn(0, index)
    x0 = law.sample(n, torch.Generator().manual_seed(index))
    noise = turn.noise(torch.arange(n), 3)
    draws = tuple(Draw.of(RectifiedFlow(), x0, t.expand(n), noise(x0)) for t in GRID.ts[:-1])
    a = A * (x0 - law.mean).squeeze(1)
    return ForwardBatch(a, a, torch.ones(n, dtype=torch.bool), Cond({}, torch.zeros(n, dtype=torch.int64)), draws)


def largest_z(method: ForwardMethod, target: Gaussian, batches: int = 16, n: int = 1000) -> float:
    """Largest z of the mean gradient over the parameters: 16 batches of 1000 samples of the target, 5 times."""
    tuned = tuned_to(target)
    found = []
    for i in range(batches):
        batch = samples_of(target, n, i)
        if isinstance(method, CRD):
            batch = method.prepare(tuned, batch, requests(n), FastTurn(0, i))
        found.append(gradient(tuned, method, batch))
    values = torch.stack(found)
    spread = values.std(0) / batches**0.5
    used = spread > 0
    return float((values.mean(0)[used] / spread[used]).abs().max())


@pytest.mark.parametrize("name", AT_TILT)
def test_the_tilted_law_is_the_fixed_point(name: str) -> None:
    """Linear reward: the gradient vanishes at the tilt with beta (10 parameters; t of 15 degrees of freedom)."""
    tilted = tilt(LAW, LinearReward(A), BETA)
    assert largest_z(AT_TILT[name], tilted) < 5
    assert largest_z(AT_TILT[name], tilt(LAW, LinearReward(A), 1.5 * BETA)) > 10


def _law(name: str) -> None:
    assert largest_z(AT_TILT[name], tilt(LAW, LinearReward(A), BETA)) < 7


@mutants(
    [
        Mutation(ram.RAM, "loss", "/ self.beta", "* self.beta", lambda: _law("ram")),
        Mutation(rvm.RVM, "loss", "0.5 * self.b * drift", "self.b * drift", lambda: _law("rvm")),
        Mutation(ratio.FPO, "score", "-self.shape", "self.shape", lambda: _law("fpo")),
        Mutation(grouped.CRD, "loss", "- batch.advantage", "+ batch.advantage", lambda: _law("crd")),
        Mutation(orw.ORW, "loss", "self.tau * batch", "-self.tau * batch", lambda: orw_minimiser()),
    ]
)
def test_mutations_are_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)


# ---- one point


def at_a_point(n: int = 300, t: float = 0.4) -> tuple[Tensor, Tensor, Draw, ForwardBatch]:
    """An old (and reference) velocity, a current one, and n samples at one time with normal advantages."""
    g = torch.Generator().manual_seed(2)
    x0, eps, anchor, v = (torch.randn(n, 2, dtype=F64, generator=g) for _ in range(4))
    a = 0.5 * torch.randn(n, dtype=F64, generator=g)
    draw = Draw.of(RectifiedFlow(), x0, torch.full((n,), t, dtype=F64), eps)
    return anchor, v, draw, ForwardBatch(a, a, torch.ones(n, dtype=torch.bool), Cond({}, torch.arange(n)), (draw,))


def slope(method: ForwardMethod, v: Tensor, anchor: Tensor, draw: Draw, batch: ForwardBatch) -> Tensor:
    free = v.clone().requires_grad_(True)
    loss = method.loss(free, {"old": anchor, "reference": anchor}, draw, batch)[0]
    return torch.autograd.grad(loss.sum(), free)[0]


def test_nft_ram_and_rvm_are_one_form() -> None:
    """``c(r)/2 |v - v_anc - a(r)(u - v_anc)|^2 / d`` up to a factor, with the published c and a."""
    anchor, v, draw, batch = at_a_point()
    r = batch.advantage[:, None]
    cases = [
        (RAM(**COMMON, beta=1.0), r + 1, r / (r + 1), 2.0),
        (RVM(**COMMON | {"scale": 1.0, "b": 2.0}), 2 + r, r / (2 + r), 1.0),
    ]
    for b in (1.0, 0.3):
        q = 0.5 + 0.5 * r / 5
        nft = DiffusionNFT(**COMMON | {"error": VelocityError(), "kappa": 0.0, "b": b, "limit": 5.0})
        cases.append((nft, torch.full_like(r, b), (2 * q - 1) / b, 10.0))
    for method, c, a, factor in cases:
        want = factor * c * (v - anchor - a * (draw.target - anchor)) / 2  # d = 2
        torch.testing.assert_close(slope(method, v, anchor, draw, batch), want, rtol=1e-9, atol=1e-12)


def test_all_agree_to_first_order() -> None:
    """At ``v = v_old = v_ref`` every member's gradient is a multiple of ``A (v - u)``, sample by sample."""
    _, v, draw, batch = at_a_point()
    want = batch.advantage[:, None] * (v - draw.target)
    noted = dataclasses.replace(draw, note=torch.full((len(v),), 0.5, dtype=F64))
    zero = dataclasses.replace(draw, note=torch.zeros(len(v), dtype=F64))
    plain = {**COMMON, "error": VelocityError()}
    members = [
        (DiffusionNFT(**plain), draw, 1.0),
        (RAM(**COMMON, beta=4.0), draw, 0.25),
        (RVM(**COMMON), draw, 0.05),
        (FPO(**COMMON), draw, 1.0),
        (DGPO(**plain), noted, 0.5),
        (CRD(**plain), zero, 2.0),
    ]
    for method, at, factor in members:
        torch.testing.assert_close(slope(method, v, v, at, batch), factor * want, rtol=1e-9, atol=1e-12)


def test_awm_weighs_the_gradient_by_the_slope_of_its_error_weight() -> None:
    _, v, draw, batch = at_a_point()
    e = mean_square(v - draw.target)
    factor = (draw.t * (e + 1e-10) ** -0.75)[:, None]
    plain, awm = (slope(m, v, v, draw, batch) for m in (FPO(**COMMON), AWM(**COMMON | {"kappa": 0.0, "lag": 0.0})))
    torch.testing.assert_close(awm, factor * plain, rtol=1e-9, atol=1e-12)
    assert torch.allclose(Huber(1.0)(e, draw.t), draw.t * e) and torch.equal(Plain()(e, draw.t), e)


def orw_minimiser() -> None:
    """At one point: ``(E[w u] + kappa v_ref) / (E[w] + kappa)``, and for kappa = 0 the velocity of the tilted law.

    x_0 given x_t is Gaussian: its 20,000 quantiles, within 0.1 %.
    """
    n, tau, time = 20_000, 0.6, torch.tensor(0.5, dtype=F64)
    law, process, x = Gaussian(1.0, 0.25), RectifiedFlow(), torch.tensor([[0.7]], dtype=F64)
    c = process(time)
    post = law.posterior(x, c.alpha, c.sigma)
    std = float(law.posterior_covs(c.alpha.reshape(1), c.sigma.reshape(1)).sqrt())
    x0 = post.means[0] + std * torch.special.ndtri((torch.arange(n, dtype=F64) + 0.5) / n).unsqueeze(1)
    draw = Draw.of(process, x0, time.expand(n), (x - c.alpha * x0) / c.sigma)
    reward = QuadraticReward(1.5, 2.0)
    a = reward(x0) - float(reward(x0).mean())
    batch = ForwardBatch(a, a, torch.ones(n, dtype=torch.bool), Cond({}, torch.arange(n)), (draw,))
    base = law.model(process)(x, time)
    for kappa in (0.0, 2.0):
        method = ORW(**COMMON | {"tau": tau, "kappa": kappa})

        def total(v: Tensor, method: ORW = method) -> Tensor:
            return method.loss(v.expand(n, 1), {"reference": base.expand(n, 1)}, draw, batch)[0].mean()

        zero = torch.zeros(1, 1, dtype=F64)
        grad = torch.autograd.functional.jacobian(total, zero).reshape(1, 1)
        bend = torch.autograd.functional.hessian(total, zero).reshape(1, 1)
        got = -grad / bend
        w = (tau * a).exp()
        want = ((w[:, None] * draw.target).mean(0) + kappa * base) / (w.mean() + kappa)
        assert torch.allclose(got, want, rtol=1e-9, atol=1e-9)
        if kappa == 0:
            tilted = tilt(law, reward, 1 / tau).model(process)(x, time)
            assert abs(float(got - tilted)) < 0.001 * abs(float(tilted - base))


def test_the_minimiser_of_orw_is_the_tilt() -> None:
    orw_minimiser()


# ---- ratios


@pytest.mark.parametrize("cls", [FPO, AWM])
def test_the_ratio_is_one_first_and_clipped_later(cls: type[FPO]) -> None:
    tuned = policy()
    method = cls(**COMMON | {"surrogate": Clip(0.01)})
    batch = collect(method, tuned, requests(32, 8))
    anchored = method.anchor(tuned, batch, {})
    for b in (batch, anchored):
        assert all(float(c.metrics[k]) == 1 for c in method.losses(tuned, b, {}) for k in ("ratio_min", "ratio_max"))
    with torch.no_grad():
        for p in tuned.parameters():
            p.add_(0.02)
    total = torch.zeros((), dtype=F64)
    for draw in anchored.draws:
        v = velocity(tuned.view(), draw.x, draw.t)
        l = -method.shape((v - draw.target).square().mean(1), draw.t)
        rho = (l - draw.note).exp()
        term = -torch.minimum(rho * batch.advantage, rho.clamp(0.99, 1.01) * batch.advantage)
        for name, weight in (("reference", method.kappa), ("old", method.lag)):
            if weight:
                still = velocity(tuned.view(name), draw.x, draw.t).detach()
                term = term + weight * (v - still).square().mean(1)
        total = total + term.mean() / len(batch.draws)
    want = torch.cat([g.flatten() for g in torch.autograd.grad(total, tuned.parameters())])
    torch.testing.assert_close(gradient(tuned, method, anchored), want, rtol=1e-9, atol=1e-12)
    assert any(0 < float(c.metrics["clip_fraction"]) < 1 for c in method.losses(tuned, anchored, {}))


# ---- groups


def test_the_gate_of_dgpo_is_that_of_the_group() -> None:
    tuned = policy()
    method = DGPO(**COMMON | {"beta": 3.0})
    batch = collect(method, tuned, requests(16, 8))
    for draw in batch.draws:
        assert bool((draw.t.view(2, 8) == draw.t.view(2, 8)[:, :1]).all())  # one time and one noise a group
        errors = [mean_square(velocity(tuned.view(n), draw.x, draw.t) - draw.target) for n in ("current", "reference")]
        gain = (batch.advantage * (errors[0] - errors[1])).view(2, 8).mean(1, keepdim=True)
        torch.testing.assert_close(draw.note.view(2, 8), torch.sigmoid(3.0 * gain).expand(2, 8).detach())
    at_reference = tunable(PLANE.model(RectifiedFlow()), GRID)
    assert all(bool((d.note == 0.5).all()) for d in collect(method, at_reference, requests(16, 8)).draws)


def test_dgpo_stops_where_an_error_has_moved_by_the_clip_the_way_its_advantage_asks() -> None:
    _, old, draw, batch = at_a_point()
    v = old + 0.3 * torch.randn(old.shape, generator=torch.Generator().manual_seed(5), dtype=F64)
    noted = dataclasses.replace(draw, note=torch.full((len(v),), 0.5, dtype=F64))
    method = DGPO(**COMMON | {"kappa": 0.0, "clip": 0.05})
    moved = mean_square(v - draw.target) - mean_square(old - draw.target)
    stopped = (batch.advantage * moved < 0) & (moved.abs() > 0.05)
    want = torch.where(stopped[:, None], 0.0, 0.5 * batch.advantage[:, None] * (v - draw.target))
    assert 0 < int(stopped.sum()) < len(v) and bool((moved.abs()[~stopped] > 0.05).any())
    torch.testing.assert_close(slope(method, v, old, noted, batch), want, rtol=1e-9, atol=1e-12)


def test_leaving_the_mean_of_crd_without_gradient_changes_nothing_at_the_first_update() -> None:
    tuned = policy()
    method = CRD(**COMMON | {"kappa": 0.0})
    tuned.keep_copy("old")
    tuned.copies["old"] = {n: w + 0.05 for n, w in tuned.copies["old"].items()}
    prompts = requests(16, 8)
    draws = method.collect(tuned, prompts, {}, Turn(0, 0))
    total = torch.zeros((), dtype=F64)
    for draw in draws.draws:
        e = {n: method.error(velocity(tuned.view(n), draw.x, draw.t), draw) for n in ("current", "old")}
        implicit = (e["old"].detach() - e["current"]).view(2, 8)
        centred = (implicit - implicit.mean(1, keepdim=True)).flatten()
        total = total + (method.b * centred - draws.advantage).square().mean() / method.b / len(draws.draws)
    want = torch.cat([g.flatten() for g in torch.autograd.grad(total, tuned.parameters())])
    torch.testing.assert_close(gradient(tuned, method, draws), want, rtol=1e-9, atol=1e-12)


# ---- every member


@pytest.mark.parametrize("name", MEMBERS)
def test_the_loss_repeats_to_the_bit_and_micro_batches_add_up(name: str) -> None:
    tuned = policy()
    method = MEMBERS[name](reward=REWARD, grid=GRID)
    batch = collect(method, tuned, requests(24, 8))
    whole = gradient(tuned, method, batch)
    assert float(whole.abs().max()) > 0 and torch.equal(whole, gradient(tuned, method, batch))
    parts = sum(gradient(tuned, method, batch.take(r)) * len(r) / 24 for r in torch.arange(24).split(7))
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["nft", "awm", "fpo", "ram", "rvm", "orw-cfm-w2", "dgpo", "crd"])
def test_groups_of_equal_rewards_teach_nothing(name: str) -> None:
    """As published, with the pull of the anchors: samples without a signal are left out of the loss."""
    flat = FunctionReward(lambda x, prompts: torch.ones(len(x)), differentiable=False)
    tuned, method = policy(), MEMBERS[name](reward=flat, grid=GRID)
    batch = collect(method, tuned, requests(16, 8))
    assert float(batch.metrics()["zero_variance"]) == 1.0
    assert float(gradient(tuned, method, batch).abs().max()) == 0.0


@pytest.mark.parametrize("name", MEMBERS)
def test_everything_stays_in_float32_and_masked_samples_add_nothing(name: str) -> None:
    tuned = policy()
    tuned.net.float()
    tuned.weights.reference = {n: w.float() for n, w in tuned.weights.reference.items()}
    method = MEMBERS[name](reward=REWARD, grid=GRID)
    batch = collect(method, tuned, requests(16, 8))
    assert all(c.loss.dtype == torch.float32 for c in method.losses(tuned, batch, {}))
    dead = dataclasses.replace(batch, mask=torch.zeros(16, dtype=torch.bool))
    assert float(gradient(tuned, method, dead).abs().max()) == 0.0


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: RAM(reward=REWARD, beta=0.0), "beta weighs a KL and must be positive, not 0.0"),
        (lambda: RVM(reward=REWARD, b=-1.0), "RVM needs scale > 0 and b >= 0, not 0.1 and -1.0"),
        (lambda: ORW(reward=REWARD, tau=0.0), "ORW-CFM-W2 needs tau > 0 and kappa >= 0, not 0.0 and 1.0"),
        (lambda: FPO(reward=REWARD, lag=-1.0), "the weights kappa and lag must be at least 0, not 0.0 and -1.0"),
        (
            lambda: FPO(reward=REWARD, surrogate=TrustMask()),
            "a denoising error has no divergence for a trust mask: use Clip or Hinge",
        ),
        (lambda: DGPO(reward=REWARD, beta=0.0), "beta of a preference loss must be positive, not 0.0"),
        (lambda: DGPO(reward=REWARD, clip=0.0), "DGPO needs clip > 0 and kappa >= 0, not 0.0 and 0.001"),
        (lambda: CRD(reward=REWARD, b=0.0), "CRD needs b > 0 and kappa >= 0, not 0.0 and 0.02"),
        (lambda: Huber(1.5), "a Huber weight needs 0 < p <= 1 and floor > 0, not 1.5 and 1e-10"),
    ],
)
def test_errors_say_what_to_do(make: object, sentence: str) -> None:
    with pytest.raises(GirsanovError) as error:
        make()
    assert str(error.value) == sentence
