"""Laws of the preference methods on images: optima, published forms, and what tells each from its neighbour."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from girsanov import models
from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.items import ItemPrompts, Items, draw_items, labelled, ranked, simulate
from girsanov.methods import METHODS
from girsanov.methods.advantages import LeaveOneOut
from girsanov.methods.base import Turn
from girsanov.methods.forward.draws import Draw, ForwardBatch
from girsanov.methods.forward.times import GridTimes
from girsanov.methods.policy_gradient.ddpo import DDPOScoreFunction
from girsanov.methods.preference import (
    D3PO,
    DLPO,
    DSPO,
    PRDP,
    SPO,
    DiffusionDPO,
    DiffusionKTO,
    DiffusionSDPO,
    MaPO,
    OnlineDPO,
    RankDPO,
    RewardWeighted,
    dlpo,
    groups,
    mapo,
    paths,
    rank_dpo,
    sdpo,
    spo,
)
from girsanov.methods.preference import candidates as candidate_file
from girsanov.methods.preference.base import ItemBatch
from girsanov.methods.preference.groups import best_and_worst, neighbours, partners
from girsanov.methods.preference.noised import Noised, Seen
from girsanov.methods.preference.weights import ConstantWeight, TiltWeight
from girsanov.pairs import PairPrompts, Pairs
from girsanov.policy import Policy
from girsanov.preferences import make_loss
from girsanov.preferences.labels import Debiased
from girsanov.preferences.links import Hinge, Square
from girsanov.preferences.pointwise import Linear, LossAverse
from girsanov.problems import (
    Gaussian,
    LinearReward,
    QuadraticReward,
    affine_kernels,
    end_law,
    path_kl_limit,
    tilt,
)
from girsanov.problems.limits import GaussianProblem, aim, limit
from girsanov.problems.moments import prior_moments
from girsanov.processes import RectifiedFlow
from girsanov.samplers import GDDIM, Euler, Heun
from girsanov.types import Cond
from tests.laws.correction import PLANE, FastTurn, collect, descend, gradient, requests, tunable
from tests.laws.mutation import Mutation, check, mutants

F64 = torch.float64
GRID = Grid.uniform(6, start=0.95, end=0.05)
CHAIN = Grid.uniform(6)
LAW, A = Gaussian(0.8, 1.69), 0.7
SLOPE = LinearReward([0.6, -0.3])
CURVE = QuadraticReward([[0.5, 0.2], [0.2, 0.8]], [0.6, -0.3])


def policy(scale: float = 0.2, grid: Grid = CHAIN, slope: bool = True) -> Policy:
    return tunable(PLANE.model(RectifiedFlow()), grid, scale=scale, slope=slope)


def pair_prompts(n: int = 24, seed: int = 0) -> PairPrompts:
    """Two draws of the plane a prompt, the one of the higher reward first."""
    g = torch.Generator().manual_seed(seed)
    one, two = PLANE.sample(n, g), PLANE.sample(n, g)
    first = (SLOPE(one, requests(n)) > SLOPE(two, requests(n)))[:, None]
    data = Pairs(
        Cond({}, torch.zeros(n, dtype=torch.int64)), torch.where(first, one, two), torch.where(first, two, one), n
    )
    return data.batch(0)


def errors_of(tuned: Policy, view: str, draw: Noised, k: int) -> Tensor:
    """Summed squared errors of item k, written out."""
    return (tuned.view(view)(draw.x[:, k], draw.t) - draw.target[:, k]).square().sum(1)


def logits_of(tuned: Policy, draw: Noised) -> Tensor:
    gap = [errors_of(tuned, v, draw, 0) - errors_of(tuned, v, draw, 1) for v in ("current", "reference")]
    return -0.5 * draw.weight * (gap[0] - gap[1])


def total_loss(method: object, tuned: Policy, batch: object) -> Tensor:
    return sum(c.loss for c in method.losses(tuned, batch, {}))


def adds_up(method: object, tuned: Policy, batch: object, size: int) -> None:
    """Called twice, and in micro-batches, the gradient is the same."""
    whole = gradient(tuned, method, batch)
    assert torch.equal(whole, gradient(tuned, method, batch)) and float(whole.abs().max()) > 0
    n = len(batch)
    parts = sum(gradient(tuned, method, batch.take(r)) * len(r) / n for r in torch.arange(n).split(size))
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)


# ---- gradients


PLAIN = {
    "diffusion-dpo": (DiffusionDPO(weight=ConstantWeight(3.0)), lambda: pair_prompts()),
    "diffusion-kto": (DiffusionKTO(weight=ConstantWeight(4.0)), lambda: labels()),
    "mapo": (MaPO(horizon=5.0), lambda: pair_prompts()),
    "rank-dpo": (RankDPO(weight=ConstantWeight(3.0)), lambda: plane_lists()),
    "online-dpo": (OnlineDPO(reward=SLOPE, weight=ConstantWeight(3.0), rollout_grid=CHAIN), lambda: requests(24, 4)),
    "d3po": (D3PO(reward=SLOPE, grid=CHAIN, beta=1.0, clip=0.9), lambda: requests(24, 4)),
    "prdp": (PRDP(reward=CURVE, grid=CHAIN, beta=0.8, clip=0.02), lambda: requests(24, 4)),
    "spo": (SPO(reward=SLOPE, grid=CHAIN, beta=1.0, clip=0.9, threshold=0.0, k=3), lambda: requests(24, 4)),
}
"""Methods whose loss is a function of the weights, nothing held fixed; PRDP's chunks add up to one."""


def plane_lists() -> ItemPrompts:
    x = PLANE.sample(72, torch.Generator().manual_seed(3)).unflatten(0, (24, 3))
    score = torch.stack([SLOPE(x[:, k], requests(24)) for k in range(3)], 1)
    return ranked(Cond({}, torch.zeros(24, dtype=torch.int64)), x, score, 1.0, 24).batch(0)


def central(tuned: Policy, value: Callable[[], Tensor], slopes: Tensor) -> None:
    """A gradient against central differences of a value of the weights: five random directions, seed 8, steps of 1e-5:
    relative error below 1e-6."""
    g, weights = torch.Generator().manual_seed(8), list(tuned.parameters())
    for _ in range(5):
        along = [torch.randn(p.shape, dtype=F64, generator=g) for p in weights]
        values = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                for p, a in zip(weights, along, strict=True):
                    p.add_(step * a)
            values.append(float(value().detach()))
        with torch.no_grad():
            for p, a in zip(weights, along, strict=True):
                p.add_(1e-5 * a)
        wanted = float(slopes @ torch.cat([a.flatten() for a in along]))
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(wanted, rel=1e-6, abs=1e-9) and abs(wanted) > 1e-6


@pytest.mark.parametrize("name", PLAIN)
def test_gradients_are_those_of_central_differences(name: str) -> None:
    """Float64; of PRDP after a move, so that some pairs are clipped; of SPO with a judge that is sure."""
    method, data = PLAIN[name]
    tuned = policy(0.2, CHAIN if name in ("d3po", "prdp", "spo") else GRID)
    if name == "spo":
        method, batch = stepwise(tuned, torch.ones_like, threshold=0.0, beta=1.0, clip=0.9, k=3)
    else:
        batch = collect(method, tuned, data())
    if name == "prdp":
        with torch.no_grad():
            for k, p in enumerate(tuned.parameters()):
                p.add_(0.03 * torch.randn(p.shape, dtype=F64, generator=torch.Generator().manual_seed(k)))
    central(tuned, lambda: total_loss(method, tuned, batch), gradient(tuned, method, batch))


def frozen_dspo(tuned: Policy, method: DSPO, batch: ItemBatch) -> Callable[[], Tensor]:
    """kappa as it was."""
    (draw,) = batch.draws
    kappa = (method.gamma * torch.sigmoid(-logits_of(tuned, draw).detach()))[:, None]
    old = tuned.view("reference")(draw.x[:, 0], draw.t)

    def value() -> Tensor:
        p = tuned.view("current")(draw.x[:, 0], draw.t)
        return (p - draw.target[:, 0] - kappa * (p - old)).square().mean()

    return value


def frozen_sdpo(tuned: Policy, method: DiffusionSDPO, batch: ItemBatch) -> Callable[[], Tensor]:
    """The loser's scale as it was, and the share of its error that is held."""
    (draw,) = batch.draws
    u, v = (tuned.view("current")(draw.x[:, k], draw.t).detach() - draw.target[:, k] for k in (0, 1))
    along = (u * v).sum(1)
    scale = torch.where(along > 0, (method.mu * u.square().sum(1) / along).clamp(max=1.0), 1.0)
    held = errors_of(tuned, "current", draw, 1).detach()
    known = errors_of(tuned, "reference", draw, 0) - errors_of(tuned, "reference", draw, 1)
    assert 0.1 < float((scale < 1).double().mean()) < 0.9

    def value() -> Tensor:
        loser = scale * errors_of(tuned, "current", draw, 1) + (1 - scale) * held
        return -logsigmoid(-0.5 * draw.weight * (errors_of(tuned, "current", draw, 0) - loser - known)).mean()

    return value


def frozen_dlpo(tuned: Policy, method: DLPO, batch: dlpo.EndedChains) -> Callable[[], Tensor]:
    """The signal as it was."""
    signals = []
    for part in batch.parts:
        t, model = part.tr.step.t, tuned.view("current")
        noise, v = (part.tr.x_t - (1 - t) * batch.x0) / t, model(part.tr.x_t, t).detach()
        signals.append(batch.advantage - method.b * (noise - part.tr.x_t - (1 - t) * v).square().mean(1))

    def value() -> Tensor:
        terms = [
            signal * GDDIM(1.0).kernel(tuned.view("current"), p.tr.x_t, p.tr.step)[0].log_prob(p.tr.x_s, "mean")
            for signal, p in zip(signals, batch.parts, strict=True)
        ]
        return -torch.stack(terms).mean()

    return value


FROZEN = {
    "dspo": (DSPO(weight=ConstantWeight(4.0), gamma=0.8), lambda: pair_prompts(), frozen_dspo),
    "diffusion-sdpo": (DiffusionSDPO(weight=ConstantWeight(3.0), mu=0.9), lambda: pair_prompts(), frozen_sdpo),
    "dlpo": (DLPO(reward=CURVE, grid=CHAIN, b=0.7), lambda: requests(24, 4), frozen_dlpo),
}
"""Methods that hold a part of their loss fixed, with the value of the weights whose gradient they take."""


@pytest.mark.parametrize("name", FROZEN)
def test_gradients_with_a_part_held_are_those_of_central_differences(name: str) -> None:
    """Float64, as above."""
    method, data, frozen = FROZEN[name]
    tuned = policy(0.2, CHAIN if name == "dlpo" else GRID)
    batch = collect(method, tuned, data())
    central(tuned, frozen(tuned, method, batch), gradient(tuned, method, batch))


# ---- pairs


def links() -> None:
    tuned, prompts = policy(grid=GRID), pair_prompts()
    for link, form in ((Square(0.5), lambda h: (h - 0.5) ** 2), (Hinge(1.0), lambda h: (1 - h).clamp_min(0))):
        method = DiffusionDPO(weight=ConstantWeight(3.0), link=link)
        batch = collect(method, tuned, prompts)
        torch.testing.assert_close(total_loss(method, tuned, batch), form(logits_of(tuned, batch.draws[0])).mean())
    method = DiffusionDPO(weight=ConstantWeight(3.0), labels=Debiased(0.2))
    batch = collect(method, tuned, prompts)
    h = logits_of(tuned, batch.draws[0])
    want = ((-0.8 * logsigmoid(h) + 0.2 * logsigmoid(-h)) / 0.6).mean()
    torch.testing.assert_close(total_loss(method, tuned, batch), want)
    adds_up(method, tuned, batch, 7)


def test_links_and_labels_of_diffusion_dpo_are_those_of_the_core() -> None:
    links()


def safeguard() -> None:
    """One pair at a time, a network that moves its output alike for both images: the winner's error never rises
    against SDPO, though it does against DPO for some of 16 pairs. The loss is DPO's."""
    rises, scales = [], []
    for seed in range(16):
        tuned, prompts = policy(0.6, GRID, slope=False), pair_prompts(1, seed)
        plain, safe = (c(weight=ConstantWeight(8.0)) for c in (DiffusionDPO, DiffusionSDPO))
        batch = collect(plain, tuned, prompts, Turn(seed, 0))
        torch.testing.assert_close(total_loss(plain, tuned, batch), total_loss(safe, tuned, batch))
        worse = torch.autograd.grad(errors_of(tuned, "current", batch.draws[0], 0).sum(), tuned.parameters())[
            0
        ].flatten()
        slopes = [float(worse @ -gradient(tuned, m, batch)) for m in (plain, safe)]
        rises.append(slopes)
        (chunk,) = safe.losses(tuned, batch, {})
        scales.append(float(chunk.metrics["loser_scale"]))
        if scales[-1] == 1.0:
            assert slopes[0] == pytest.approx(slopes[1])
    assert sum(dpo > 1e-9 for dpo, _ in rises) > 1 and max(sdpo for _, sdpo in rises) < 1e-9
    assert 1 < sum(s < 1 for s in scales) < 15


def test_sdpo_never_makes_the_winner_worse() -> None:
    safeguard()


def dspo_minimum() -> None:
    """With kappa = gamma / 2 (h = 0): the gradient vanishes at ``p_ref + (mean u - p_ref) / (1 - kappa)``."""
    g = torch.Generator().manual_seed(0)
    u, old = torch.randn(64, 2, 3, dtype=F64, generator=g), torch.randn(3, dtype=F64, generator=g)
    kappa = 0.5 * 0.6
    best = (old + (u[:, 0].mean(0) - old) / (1 - kappa)).requires_grad_(True)
    draw = Noised(0 * u, u, torch.full((64,), 0.5, dtype=F64), torch.zeros(64, dtype=F64))
    seen, base = (Seen(p.expand(64, 2, 3), torch.zeros(64, 2, dtype=F64)) for p in (best, old))
    batch = ItemBatch(draw.t, Cond({}, torch.zeros(64, dtype=torch.int64)), (draw,))
    rows, _ = DSPO(gamma=0.6).rows(seen, base, draw, batch)
    (slope,) = torch.autograd.grad(rows.mean(), best)
    assert float(slope.abs().max()) < 1e-15
    plain, _ = DSPO(gamma=0.0).rows(seen, base, draw, batch)
    torch.testing.assert_close(plain.detach(), (best - u[:, 0]).square().mean(1).detach())


def test_dspo_overshoots_the_winners() -> None:
    dspo_minimum()


def test_dspo_is_its_formula_and_adds_up() -> None:
    tuned, method = policy(grid=GRID), DSPO(weight=ConstantWeight(4.0), gamma=0.8)
    batch = collect(method, tuned, pair_prompts())
    (draw,) = batch.draws
    h = logits_of(tuned, draw).detach()
    p, old = (tuned.view(v)(draw.x[:, 0], draw.t) for v in ("current", "reference"))
    want = (p - draw.target[:, 0] - (0.8 * torch.sigmoid(-h))[:, None] * (p - old)).square().mean()
    torch.testing.assert_close(total_loss(method, tuned, batch), want)
    adds_up(method, tuned, batch, 7)


def mapo_form() -> None:
    """The public code's loss, written out; no reference; phi is 1 at 0 with the slope -k / 2."""
    tuned, method = policy(grid=GRID), MaPO(beta=0.4, scale=0.5, horizon=3.0)
    batch = collect(method, tuned, pair_prompts())
    e = [errors_of(tuned, "current", batch.draws[0], k) / 2 for k in (0, 1)]
    odds = 0.5 * e[0] / ((0.5 * e[0]).exp() - 1) - 0.5 * e[1] / ((0.5 * e[1]).exp() - 1)
    torch.testing.assert_close(total_loss(method, tuned, batch), e[0].mean() - 0.4 * logsigmoid(3.0 * odds).mean())
    small = torch.tensor([0.0, 1e-4, 1e9], dtype=F64)
    phi = mapo.margin_score(small, 0.5)
    assert float(phi[0]) == pytest.approx(1) and float(phi[2]) < 1e-20
    assert float((phi[1] - phi[0]) / 1e-4) == pytest.approx(-0.25, rel=1e-4)
    adds_up(method, tuned, batch, 7)


def test_mapo_is_the_published_loss_and_has_no_reference() -> None:
    mapo_form()
    assert not MaPO.compares


# ---- lists and labels


def lists(n: int, k: int, seed: int = 0, temperature: float = 1.0) -> Items:
    """Draws of a law on the line, ranked by an annotator who likes A x."""
    x = LAW.sample(n * k, torch.Generator().manual_seed(seed)).view(n, k, 1)
    return ranked(Cond({}, torch.zeros(n, dtype=torch.int64)), x, A * x.squeeze(2), temperature, n, seed)


def rank_form() -> None:
    """Three images: the published weights by hand; with two it is DPO weighted by how sure the annotator is."""
    tuned, data = tunable(LAW.model(RectifiedFlow()), GRID, scale=0.3), lists(16, 3)
    method = RankDPO(weight=ConstantWeight(3.0))
    batch = collect(method, tuned, data.batch(0))
    (draw,), score = batch.draws, batch.score
    s = torch.stack(
        [errors_of(tuned, "current", draw, k) - errors_of(tuned, "reference", draw, k) for k in range(3)], 1
    )
    s = -0.5 * draw.weight[:, None] * s
    psi = torch.stack(
        [sum(torch.sigmoid(score[:, i] - score[:, j]) for j in range(3) if j != i) / 2 for i in range(3)], 1
    )
    gain, discount = 2**psi - 1, [1 / math.log(2), 1 / math.log(3), 1 / math.log(4)]
    want = torch.zeros(16, dtype=F64)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        weight = (gain[:, i] - gain[:, j]).abs() * (discount[i] - discount[j])
        want = want - weight * logsigmoid(s[:, i] - s[:, j])
    torch.testing.assert_close(total_loss(method, tuned, batch), want.mean())
    adds_up(method, tuned, batch, 5)


def test_rank_dpo_has_the_published_weights() -> None:
    rank_form()


def rankings_tilt() -> None:
    """Plackett-Luce on 3000 rankings of three, seed 0: at the tilt the gradient is within 5 standard errors of 0 (12
    parameters), with another beta it is not."""
    method = RankDPO(
        weight=TiltWeight(beta=1.3, std=1.3), loss=make_loss("plackett-luce", score=make_loss("dpo", beta=1.0).score),
        times=GridTimes(), draws=6, grid=GRID,
    )  # fmt: skip
    largest = {}
    for beta in (1.3, 2.0):
        tuned, zero = tunable(LAW.model(RectifiedFlow()), GRID), torch.zeros(1, 1, dtype=F64)
        target = tilt(LAW, LinearReward(A), beta).model(RectifiedFlow())
        with torch.no_grad():
            for k, t in enumerate(GRID.ts[:-1]):
                tuned.net.c[k] = (target(zero, t) - LAW.model(RectifiedFlow())(zero, t))[0]
        found = [
            gradient(tuned, method, collect(method, tuned, lists(300, 3, i).batch(0), FastTurn(0, i)))
            for i in range(10)
        ]
        values = torch.stack(found)[:, : len(GRID)]
        spread = values.std(0) / 10**0.5
        largest[beta] = float((values.mean(0) / spread).abs().max())
    assert largest[1.3] < 5 and largest[2.0] > 8


def test_rankings_of_a_linear_reward_lead_to_the_tilted_law() -> None:
    rankings_tilt()


def labels(n: int = 40) -> ItemPrompts:
    x = PLANE.sample(n, torch.Generator().manual_seed(4)).unsqueeze(1)
    return labelled(
        Cond({}, torch.zeros(n, dtype=torch.int64)), x, SLOPE(x[:, 0], requests(n)).unsqueeze(1), 1.0, n
    ).batch(0)


def kto_form() -> None:
    """Written out with its baseline; micro-batches keep the baseline of the whole batch."""
    tuned, prompts = policy(0.3, GRID), labels()
    method = DiffusionKTO(weight=ConstantWeight(4.0), desirable=1.5, undesirable=0.7)
    batch = collect(method, tuned, prompts)
    (draw,), sign = batch.draws, batch.sign[:, 0]
    g = errors_of(tuned, "reference", draw, 0) - errors_of(tuned, "current", draw, 0)
    s = 0.5 * draw.weight * g  # beta times the mean error, beta = 2
    torch.testing.assert_close(s, 2.0 * g / 2)
    z = s.mean().clamp_min(0).detach()
    weight = torch.where(sign > 0, 1.5, 0.7)
    torch.testing.assert_close(total_loss(method, tuned, batch), -(weight * torch.sigmoid(sign * (s - z))).mean())
    assert float(draw.baseline[0]) == pytest.approx(float(z))
    adds_up(method, tuned, batch, 7)


def test_diffusion_kto_is_its_formula() -> None:
    kto_form()


def test_the_linear_utility_is_a_signed_denoising_loss_and_others_are_not() -> None:
    tuned, prompts = policy(0.3, GRID), labels()
    found = {}
    for utility in (Linear(), LossAverse()):
        method = DiffusionKTO(weight=ConstantWeight(4.0), utility=utility, centred=False)
        batch = collect(method, tuned, prompts)
        assert float(batch.draws[0].baseline.abs().max()) == 0
        found[utility] = gradient(tuned, method, batch)
    signed = (batch.sign[:, 0] * errors_of(tuned, "current", batch.draws[0], 0)).mean()
    want = torch.cat([x.flatten() for x in torch.autograd.grad(signed, tuned.parameters())])
    torch.testing.assert_close(found[Linear()], want)
    assert float((found[LossAverse()] - found[Linear()]).abs().max()) > 0.05 * float(want.abs().max())


# ---- pairs of a rollout


def test_pairs_within_groups() -> None:
    r = torch.tensor([1.0, 3.0, 2.0, math.nan, 5.0, 5.0, 0.0, math.nan], dtype=F64)
    group = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    best = best_and_worst(r, group)
    found = {int(b): int(w) for b, w in zip(best.better, best.worse, strict=True)}
    assert found[1] == 0 and sorted(best.valid.tolist()) == [False, False, True]
    assert float(best.gap[best.valid]) == 2.0
    pairs = neighbours(r, group)
    assert sorted(zip(pairs.better.tolist(), pairs.worse.tolist(), strict=True))[:2] == [(1, 0), (2, 3)]
    other, differ = partners(r, group)
    assert other.tolist() == [1, 2, 3, 0, 5, 4, 7, 6] and differ.tolist() == [True, True, False, False] + [False] * 4
    with pytest.raises(GirsanovError, match="at least two samples of a prompt"):
        best_and_worst(r[:1], group[:1])


def online_is_offline() -> None:
    """On the pairs that it picks it is Diffusion-DPO, to the bit; ties add nothing; a reference that follows is the old
    policy."""
    tuned = policy()
    method = OnlineDPO(reward=CURVE, weight=ConstantWeight(5.0), rollout_grid=Grid.uniform(5))
    batch = collect(method, tuned, requests(24, 4))
    (draw,) = batch.draws
    assert len(batch) == 6 and bool(batch.mask.all())
    h = logits_of(tuned, draw)
    torch.testing.assert_close(total_loss(method, tuned, batch), -logsigmoid(h).mean())
    reward = CURVE((draw.x - draw.t[:, None, None] * draw.target).flatten(0, 1), requests(12)).view(
        6, 2
    )  # x_0 = x - t v
    torch.testing.assert_close(reward.mean(1), batch.reward)
    assert bool((reward[:, 0] > reward[:, 1]).all())
    adds_up(method, tuned, batch, 4)
    follows = dataclasses.replace(method, follow=1)
    moved = collect(follows, tuned, requests(24, 4), Turn(0, 1))
    assert float(total_loss(follows, tuned, moved).detach()) == pytest.approx(math.log(2), rel=1e-12)


def test_online_dpo_is_diffusion_dpo_on_its_own_pairs() -> None:
    online_is_offline()


def d3po_form() -> None:
    """log 2 at the reference; the published loss of every step, clip included; a silent step has no gradient."""
    still = tunable(PLANE.model(RectifiedFlow()), CHAIN)
    method = D3PO(reward=CURVE, grid=CHAIN, beta=0.7, clip=0.05)
    chunks = list(method.losses(still, collect(method, still, requests(24, 4)), {}))
    assert float(sum(c.loss.detach() for c in chunks)) == pytest.approx(math.log(2), rel=1e-15) and len(chunks) == 5
    tuned = policy(0.1)
    batch = collect(method, tuned, requests(24, 4))
    want, silent = torch.zeros((), dtype=F64), 0.0
    for part in batch.parts:
        kernel, ref = (GDDIM(1.0).kernel(tuned.view(v), part.tr.x_t, part.tr.step)[0] for v in ("current", "reference"))
        ratio = (kernel.log_prob(part.tr.x_s, "mean") - ref.log_prob(part.tr.x_s, "mean")).exp().view(-1, 2)
        held = ratio.clamp(0.95, 1.05)
        silent += float((held != ratio).double().mean()) / len(batch.parts)
        want = want - logsigmoid(0.7 * (held[:, 0].log() - held[:, 1].log())).mean() / len(batch.parts)
    torch.testing.assert_close(total_loss(method, tuned, batch), want, rtol=1e-9, atol=1e-12)
    assert 0.2 < silent < 1 and bool((batch.gap > 0).all())
    adds_up(method, tuned, batch, 4)


def test_d3po_is_the_published_loss() -> None:
    d3po_form()


def residual_at_the_optimum(reward: QuadraticReward, steps: int, beta: float = 0.9) -> float:
    """Mean residual of pairs at the optimum of ``E r - 0.9 KL(path)`` over the means of the steps."""
    grid = Grid.uniform(steps)
    method = PRDP(reward=reward, grid=grid, beta=0.9, clip=None)
    tuned, zero = tunable(PLANE.model(RectifiedFlow()), grid), torch.zeros(1, 2, dtype=F64)
    base = affine_kernels(PLANE.model(RectifiedFlow()), method.sampler, grid)
    best = path_kl_limit(base, prior_moments(tuned.view("reference")), reward, 0.9).kernels
    with torch.no_grad():
        for k, step in enumerate(grid):
            gain = float(method.sampler.kernel(tuned.view("reference"), zero, step)[0].gain)
            tuned.net.M[k] = (best[k].F - base[k].F) / gain
            tuned.net.c[k] = (best[k].c - base[k].c) / gain
    batch = collect(method, tuned, requests(64, 4))
    assert len(batch) == 32 and float(batch.gap.max()) > 0.1
    asked = dataclasses.replace(method, beta=beta)
    (found,) = {round(float(c.metrics["residual"]), 12) for c in asked.losses(tuned, batch, {})}
    return found


def prdp_optimum() -> None:
    """Linear reward: the residual of every pair is 0, and with another beta it is not."""
    assert residual_at_the_optimum(SLOPE, 6) < 1e-9 and residual_at_the_optimum(SLOPE, 6, beta=0.6) > 0.05


def test_prdp_is_0_at_the_optimal_chain_and_nowhere_else() -> None:
    """With a curved reward the optimal steps are no Gaussians of that std; what is left shrinks slowly with the steps
    (.18, .17, .14, .12 for 6, 12, 24 and 48 of them)."""
    prdp_optimum()
    coarse, fine = (residual_at_the_optimum(CURVE, n) for n in (6, 48))
    assert 0.01 < fine < 0.75 * coarse


def prdp_gradient() -> None:
    """Chunks by step have the gradient of the whole square; the clipped branch is the larger one."""
    tuned = policy(0.3)
    method = PRDP(reward=CURVE, grid=CHAIN, beta=0.8, clip=0.02)
    batch = collect(method, tuned, requests(24, 4))
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in tuned.parameters():
            p.add_(0.05 * torch.randn(p.shape, dtype=F64, generator=g))
    ratios = [paths.log_ratios(part, tuned.view("current"), "sum") for part in batch.parts]
    held = [b + (r - b).clamp(-0.02, 0.02) for r, b in zip(ratios, batch.prior, strict=True)]
    plain, near = ((0.8 * sum(r[:, 0] - r[:, 1] for r in found) - batch.gap).square() for found in (ratios, held))
    assert 0.1 < float((near > plain).double().mean()) < 0.95
    want = torch.maximum(plain, near).mean()
    torch.testing.assert_close(total_loss(method, tuned, batch), want)
    slopes = torch.autograd.grad(want, tuned.parameters(), allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(gradient(tuned, method, batch), torch.cat([s.flatten() for s in slopes]))
    adds_up(method, tuned, batch, 5)


def test_prdp_in_chunks_is_the_clipped_square() -> None:
    prdp_gradient()


def dlpo_form() -> None:
    """The written-out gradient; with b = 0 it is DDPO's score function, with b > 0 it is not."""
    tuned = policy(0.2)
    method = DLPO(reward=CURVE, grid=CHAIN, b=0.7)
    batch = collect(method, tuned, requests(24, 4))
    want = torch.zeros((), dtype=F64)
    for part in batch.parts:
        t, model = part.tr.step.t, tuned.view("current")
        v = model(part.tr.x_t, t)
        noise, found = (part.tr.x_t - (1 - t) * batch.x0) / t, part.tr.x_t + (1 - t) * v
        signal = batch.advantage - 0.7 * (noise - found).square().mean(1)
        log_p = GDDIM(1.0).kernel(model, part.tr.x_t, part.tr.step)[0].log_prob(part.tr.x_s, "mean")
        want = want - (signal.detach() * log_p).mean() / len(batch.parts)
    slopes = torch.autograd.grad(want, tuned.parameters(), allow_unused=True, materialize_grads=True)
    got = gradient(tuned, method, batch)
    torch.testing.assert_close(got, torch.cat([s.flatten() for s in slopes]), rtol=1e-9, atol=1e-12)
    plain = DDPOScoreFunction(reward=CURVE, grid=CHAIN, advantage=LeaveOneOut())
    same = gradient(tuned, plain, collect(plain, tuned, requests(24, 4)))
    free = dataclasses.replace(method, b=0.0)
    torch.testing.assert_close(gradient(tuned, free, batch), same)
    assert float((got - same).abs().max()) > 1e-3
    adds_up(method, tuned, batch, 7)


def test_dlpo_charges_the_denoising_loss() -> None:
    dlpo_form()


def weighted_gradient(beta: float, target: float) -> float:
    """Largest z of the gradient of reward-weighted regression at the tilt with ``target``: 12 batches of 1500 exact
    draws of the reference at 5 times; the reward is curved."""
    law, reward = Gaussian(0.3, 0.8), QuadraticReward(0.5, 0.6)
    tuned, grid = tunable(law.model(RectifiedFlow()), GRID), GRID.ts[:-1]
    model, points = tilt(law, reward, target).model(RectifiedFlow()), torch.tensor([[0.0], [1.0]], dtype=F64)
    with torch.no_grad():
        for k, t in enumerate(grid):
            move = model(points, t) - law.model(RectifiedFlow())(points, t)
            tuned.net.c[k], tuned.net.M[k] = move[0], (move[1] - move[0])[None]
    method, found = RewardWeighted(reward=reward, beta=beta, draws=5), []
    for i in range(12):
        turn = FastTurn(0, i)
        x0, noise = law.sample(1500, torch.Generator().manual_seed(i)), turn.noise(torch.arange(1500), 3)
        draws = tuple(Draw.of(RectifiedFlow(), x0, t.expand(1500), noise(x0)) for t in grid)
        r = reward(x0, requests(1500))
        batch = ForwardBatch(
            r, r, torch.ones(1500, dtype=torch.bool), Cond({}, torch.zeros(1500, dtype=torch.int64)), draws
        )
        found.append(gradient(tuned, method, method.prepare(tuned, batch, requests(1500), turn)))
    values = torch.stack(found)
    spread = values.std(0) / 12**0.5
    return float((values.mean(0)[spread > 0] / spread[spread > 0]).abs().max())


def regression() -> None:
    assert weighted_gradient(1.2, 1.2) < 5.5 and weighted_gradient(1.2, 2.0) > 9  # t of 11 degrees, 12 parameters


def test_reward_weighted_regression_has_the_tilted_law_for_a_curved_reward() -> None:
    regression()


def test_prdp_converges_to_the_optimal_chain() -> None:
    """One dimension, linear reward, 4 steps, 128 samples an iteration in groups of four, seed 0: the law of the last
    weights is the path-KL optimum's to 3 %."""
    law, grid = Gaussian(0.5, 1.2), Grid.uniform(4)
    tuned = tunable(law.model(RectifiedFlow()), grid)
    method = PRDP(reward=LinearReward(0.8), grid=grid, beta=0.9, clip=None)
    descend(tuned, method, requests(128, 4), iterations=60, lr=0.1, tail=10)
    want = limit(method, GaussianProblem(law, LinearReward(0.8), RectifiedFlow(), "velocity"))
    assert want is not None
    got = end_law(tuned.view("ema"), method.sampler, grid)
    torch.testing.assert_close(got.mean, want.law.mean, rtol=0.03, atol=0)
    torch.testing.assert_close(got.cov, want.law.cov, rtol=0.03, atol=0)
    assert float((want.law.mean - end_law(law.model(RectifiedFlow()), method.sampler, grid).mean).abs()) > 0.3


def test_limits_of_prdp_and_of_reward_weighting_tend_to_the_tilt() -> None:
    """Errors halve (PRDP, a chain) and quarter (reward weighting, Heun) as the steps are doubled."""
    law = Gaussian(0.5, 1.2)
    for reward, make, order in (
        (LinearReward(0.8), lambda n: PRDP(reward=LinearReward(0.8), grid=Grid.uniform(n), beta=0.9), 1),
        (QuadraticReward(0.4, 0.8), lambda n: RewardWeighted(reward=CURVE, grid=Grid.uniform(n), beta=0.9), 2),
    ):
        problem = GaussianProblem(law, reward, RectifiedFlow(), "velocity")
        want, errors = tilt(law, reward, 0.9), []
        for n in (80, 160):
            end = limit(make(n), problem).law
            errors.append(float((end.mean - want.mean).abs() + (end.cov - want.cov).abs()))
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)
        assert float((aim(make(40), problem).mean - want.mean).abs()) < 1e-12
    assert limit(PRDP(reward=CURVE), GaussianProblem(PLANE, CURVE, RectifiedFlow(), "velocity")) is None


def test_reward_weighted_regression_samples_the_reference() -> None:
    """Moved weights change nothing of what it collects; a dropped sample has no weight."""
    method = RewardWeighted(reward=CURVE, grid=CHAIN, draws=1)
    one, two = (collect(method, policy(scale), requests(8, 4)) for scale in (0.0, 0.5))
    assert torch.equal(one.draws[0].x, two.draws[0].x)
    gone = dataclasses.replace(one, reward=torch.where(torch.arange(8) == 2, math.nan, one.reward))
    noted = method.prepare(policy(0.0), gone, requests(8, 4), Turn(0, 0))
    assert (
        float(noted.draws[0].note[2]) == 0
        and not bool(noted.mask[2])
        and float(noted.draws[0].note.mean()) == pytest.approx(1)
    )


# ---- SPO


class Taste(torch.nn.Module):
    """V(x, t) = c(t) . x."""

    def __init__(self, slope: object) -> None:
        super().__init__()
        self.slope, self.free = slope, torch.nn.Parameter(torch.ones((), dtype=F64))

    def forward(self, x: Tensor, t: Tensor, cond: object) -> Tensor:
        return self.free * (self.slope(t)[:, None] * x * torch.tensor([0.6, -0.3], dtype=F64)).sum(1)


def stepwise(tuned: Policy, slope: object, **more: object) -> tuple[SPO, object]:
    method = SPO(reward=SLOPE, grid=CHAIN, skip=0.2, **more)
    method.setup(tuned)
    method._nets["preference_model"] = Taste(slope)
    return method, method.collect(tuned, requests(12, 4), {}, Turn(0, 0))


def spo_pairs() -> None:
    """Both rows of a pair start from one state and are the candidates that V ranks first and last; one candidate, at
    random, goes on; the loss is D3PO's of these pairs."""
    tuned = policy(0.1)
    method, batch = stepwise(tuned, torch.ones_like, threshold=0.0, beta=3.0, clip=0.05, k=3)
    assert [p.tr.step.i for p in batch.parts] == [1, 2, 3, 4] and len(batch) == 12
    for part in batch.parts:
        x, y = part.tr.x_t.view(12, 2, 2), SLOPE(part.tr.x_s, requests(24)).view(12, 2)
        assert torch.equal(x[:, 0], x[:, 1]) and bool((y[:, 0] > y[:, 1]).all())
    turn = Turn(0, 0)
    x_T = tuned.view("current").process.prior(turn.noise(torch.arange(12)).normal((2,), F64))
    path = candidate_file.candidates(tuned.view("current"), GDDIM(1.0), CHAIN, x_T, requests(12, 4), turn, 3, 2)
    picked = []
    for before, after in zip(path.transitions, path.transitions[1:], strict=False):
        start, ends = after.x_t.view(12, 3, 2), before.x_s.view(12, 3, 2)
        assert bool((start[:, :1] == start).all())
        picked.append((start[:, :1] == ends).all(2).double().argmax(1))
        assert bool((start[:, 0] == ends[torch.arange(12), picked[-1]]).all())
    assert sorted(set(torch.stack(picked).flatten().tolist())) == [0, 1, 2]
    want = torch.zeros((), dtype=F64)
    for part in batch.parts:
        ratio = paths.log_ratios(part, tuned.view("current"), "mean").exp().clamp(0.95, 1.05).log()
        want = want - logsigmoid(3.0 * (ratio[:, 0] - ratio[:, 1])).mean() / 4
    found = list(method.losses(tuned, batch, {}))
    torch.testing.assert_close(sum(c.loss for c in found if c.module == "policy"), want)
    adds_up(method, tuned, batch, 5)


def test_spo_compares_candidates_of_one_state() -> None:
    spo_pairs()


def spo_once() -> None:
    """Asking once a state gives what asking once a candidate gives, batch, loss and gradient, to 1e-12."""
    found = []
    for shared in (models.Shared, lambda model, copies: model):
        with pytest.MonkeyPatch.context() as patch:
            for owner in (candidate_file, spo):
                patch.setattr(owner, "Shared", shared)
            tuned = policy(0.1)
            method, batch = stepwise(tuned, torch.ones_like, threshold=0.0, beta=3.0, clip=0.05, k=3)
            loss = total_loss(method, tuned, batch).detach()
            found.append([loss, gradient(tuned, method, batch), *(p.tr.x_s for p in batch.parts)])
    for once, often in zip(*found, strict=True):
        torch.testing.assert_close(once, often, rtol=1e-12, atol=1e-12)


def test_spo_asks_once_a_state_for_the_same_numbers() -> None:
    spo_once()


def test_a_shared_model_answers_for_every_row() -> None:
    """Times and conditions of each sample; a batch that is no multiple is refused."""
    cond = Cond({"c": torch.tensor([0.5, 2.0], dtype=F64)}, torch.tensor([1, 0]))
    model = models.Model(lambda x, t, c: x * t[:, None] + c["c"][:, None], RectifiedFlow(), "velocity", (2,))
    x, t = torch.randn(2, 2, dtype=F64, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.7])
    wide, rows = x.repeat_interleave(3, 0), torch.arange(2).repeat_interleave(3)
    got = models.Shared(model, 3)(wide, t[rows].double(), cond.take(rows))
    assert torch.equal(got, model(x, t.double(), cond)[rows])
    with pytest.raises(GirsanovError, match="5 rows do not come in runs of 3"):
        models.Shared(model, 3)(wide[:5], torch.tensor(0.5), None)


def test_spo_waits_until_its_preference_model_tells_candidates_apart() -> None:
    for slope, kept in ((torch.zeros_like, 0.0), (lambda t: 50.0 + 0 * t, 1.0)):
        method, batch = stepwise(policy(0.1), slope, threshold=0.3)
        shares = [float(c.metrics["pairs"]) for c in method.losses(policy(0.1), batch, {}) if c.module == "policy"]
        assert all(s == 0 for s in shares) if kept == 0 else min(shares) > 0.8
    fresh = SPO(reward=SLOPE, grid=CHAIN, skip=0.2)
    fresh.setup(policy(0.1))
    batch = fresh.collect(policy(0.1), requests(12, 4), {}, Turn(0, 0))
    assert not any(bool(p.mask.any()) for p in batch.parts)


def judge_optimum() -> None:
    """``V = a^T x / (alpha T)`` meets the odds of every pair: the preference model's gradient is 0 to rounding."""
    tuned = policy(0.1)
    for factor, small in ((1.0, True), (1.1, False)):
        method, batch = stepwise(tuned, lambda t, f=factor: f / ((1 - t) * 1.7), temperature=1.7)
        (chunk,) = [c for c in method.losses(tuned, batch, {}) if c.module == "preference_model"]
        (slope,) = torch.autograd.grad(chunk.loss, method.modules()["preference_model"].parameters())
        assert (abs(float(slope)) < 1e-12) == small


def test_the_preference_model_has_the_noised_reward_as_its_optimum() -> None:
    judge_optimum()


# ---- data and errors


def test_rankings_are_plackett_and_luces() -> None:
    """20,000 rankings of three, seed 0: the frequency of every order within 4.5 standard errors; T = 0 never errs."""
    n, r = 20_000, torch.tensor([0.0, 0.5, 1.3], dtype=F64)
    x = torch.arange(3, dtype=F64).expand(n, 3).unsqueeze(2)
    data = ranked(Cond({}, torch.zeros(n, dtype=torch.int64)), x, r.expand(n, 3), 1.0)
    order = data.items.squeeze(2).long()
    s = r.exp()
    for i, j, k in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        p = float(s[i] / s.sum() * s[j] / (s[j] + s[k]))
        share = float((order == torch.tensor([i, j, k])).all(1).double().mean())
        assert abs(share - p) < 4.5 * math.sqrt(p * (1 - p) / n)
    sure = ranked(data.cond, x, r.expand(n, 3), 0.0)
    assert torch.equal(sure.items[:5].squeeze(2), torch.tensor([[2.0, 1.0, 0.0]] * 5, dtype=F64))


def test_labels_follow_the_reward_around_its_median() -> None:
    """20,000 samples, seed 0: the share of good ones at reward m + 1 is sigma(1), z below 4.5."""
    r = torch.tensor([0.0, 1.0, 2.0, 1.0], dtype=F64).repeat(5000)
    data = labelled(Cond({}, torch.zeros(20_000, dtype=torch.int64)), r.view(-1, 1, 1), r.view(-1, 1), 1.0)
    share = float((data.sign[r == 2] > 0).double().mean())
    p = 1 / (1 + math.exp(-1))
    assert abs(share - p) < 4.5 * math.sqrt(p * (1 - p) / 5000)


def test_items_are_served_like_pairs() -> None:
    data = dataclasses.replace(lists(10, 3), batch_size=4)
    one, two = data.batch(3), [data.batch(3, rank, 2) for rank in (0, 1)]
    assert torch.equal(torch.cat([p.items for p in two]), one.items) and torch.equal(one.score, data.score[one.group])
    assert torch.equal(one.take(torch.tensor([2, 0])).items, one.items[[2, 0]])
    assert isinstance(one.to("cpu"), ItemPrompts) and one.sign is None
    model = LAW.model(RectifiedFlow())
    for kind, shape in (("labels", (1, 1)), ("lists", (4, 1)), ("pairs", None)):
        made = simulate(kind, model, Euler(), Grid.uniform(3), LinearReward(A), requests(6), batch_size=3, dtype=F64)
        got = made.batch(0)
        assert isinstance(got, PairPrompts) if shape is None else tuple(got.items.shape[1:]) == shape
    x, r = draw_items(model, Heun(), Grid.uniform(3), LinearReward(A), requests(6), 2, dtype=F64)
    torch.testing.assert_close(r, A * x.squeeze(2))


COND = Cond({}, torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Items(COND, torch.zeros(2, 3)), "items are samples [N, K, *D] with N conditions, not [2, 3] with 2"),
        (lambda: Items(COND, torch.zeros(2, 3, 1), torch.zeros(2, 2)), "score must have shape [2, 3], not [2, 2]"),
        (
            lambda: Items(COND, torch.zeros(2, 2, 1), torch.tensor([[1.0, 0.0], [0.0, 1.0]])),
            "the items of row 1 are not sorted by their scores, best first: sort them",
        ),
        (
            lambda: Items(COND, torch.zeros(2, 2, 1), torch.tensor([[1.0, 0.0], [math.nan, 1.0]])),
            "the score of row 1 is not finite",
        ),
        (lambda: Items(COND, torch.zeros(2, 1, 1), sign=torch.zeros(2, 1)), "labels are +1 (good) and -1 (bad)"),
        (lambda: ranked(COND, torch.zeros(2, 2, 1), torch.zeros(2, 2), -1.0), "an annotator's temperature must be at"),
        (
            lambda: collect(DiffusionKTO(), policy(), pair_prompts(4)),
            "DiffusionKTO learns from labelled samples: give Items(..., sign=...), for example labelled(...)",
        ),
        (
            lambda: collect(RankDPO(), policy(), requests(4)),
            "RankDPO learns from rankings: give Items(..., score=...), for example ranked(...)",
        ),
        (
            lambda: D3PO(reward=CURVE, sampler=Euler()),
            "D3PO compares likelihoods of steps and Euler has none: use a stochastic single-step sampler, for example",
        ),
        (lambda: D3PO(reward=CURVE, clip=0.0), "D3PO needs beta > 0 and a clip in (0, 1), not 0.1 and 0.0"),
        (lambda: PRDP(reward=CURVE, beta=0.0), "beta and clip of PRDP must be positive, not 0.0 and 0.01"),
        (lambda: DLPO(reward=CURVE, b=-1.0), "b weighs the diffusion loss and must be at least 0, not -1.0"),
        (lambda: SPO(reward=CURVE, k=1), "SPO needs k of at least 2, beta and temperature above 0"),
        (
            lambda: collect(SPO(reward=CURVE, grid=CHAIN, skip=0.9), policy(), requests(8, 4)),
            "no step from 5 on draws noise: lower skip, or take more steps",
        ),
        (
            lambda: collect(D3PO(reward=CURVE, grid=Grid.uniform(1)), policy(), requests(8, 4)),
            "no step of the 1 draws noise under GDDIM from 0 on: take more steps",
        ),
        (
            lambda: collect(OnlineDPO(reward=CURVE), policy(), requests(4, 1)),
            "pairs need at least two samples of a prompt: set group_size to 2 or more",
        ),
        (lambda: DSPO(gamma=1.0), "gamma must lie in [0, 1), or the loss has no minimum, not 1.0"),
        (lambda: MaPO(beta=0.0), "beta, scale and horizon of MaPO must be positive, not 0.0, 0.5 and 1000.0"),
        (lambda: DiffusionSDPO(mu=0.0), "the share of the safe scale lies in (0, 1], not 0.0"),
        (lambda: RewardWeighted(reward=CURVE, beta=0.0), "beta of a tilt must be positive, not 0.0"),
    ],
)
def test_errors_say_what_to_do(make: object, sentence: str) -> None:
    with pytest.raises(GirsanovError) as error:
        make()
    assert str(error.value).startswith(sentence)


def test_offline_methods_say_which_data_they_take() -> None:
    want = {"diffusion-dpo": "pairs", "diffusion-sdpo": "pairs", "dspo": "pairs", "mapo": "pairs", "rank-dpo": "lists"}
    want |= {"diffusion-kto": "labels", "online-dpo": "prompts", "d3po": "prompts", "spo": "prompts", "prdp": "prompts"}
    assert {name: METHODS[name].data for name in want} == want


@mutants(
    [
        Mutation(sdpo, "safe_scale", "mu * size / along", "size", safeguard),
        Mutation(DiffusionSDPO, "rows", "now.error[:, 1].detach()", "now.error[:, 1]", safeguard),
        Mutation(DSPO, "rows", "p - kappa", "p + kappa", dspo_minimum),
        Mutation(mapo, "margin_score", "torch.expm1(x)", "torch.exp(x)", mapo_form),
        Mutation(MaPO, "rows", "score[:, 0] - score[:, 1]", "score[:, 1] - score[:, 0]", mapo_form),
        Mutation(rank_dpo, "win_share", "- 0.5", "", rank_form),
        Mutation(RankDPO, "rows", "win_share(items.score.to(items.logp))", "items.score", rank_form),
        Mutation(DiffusionKTO, "collect", ".clamp_min(0)", "", lambda: low_baseline()),
        Mutation(DiffusionKTO, "rows", "undesirable=self.undesirable", "undesirable=1.0", kto_form),
        Mutation(groups, "_pairs", "reward[second] > reward", "reward[second] < reward", online_is_offline),
        Mutation(OnlineDPO, "collect", "path.x0[pairs.better], path", "path.x0[pairs.worse], path", online_is_offline),
        Mutation(Noised, "of", "c.alpha, c.sigma)", "c.alpha, 0 * c.sigma)", online_is_offline),
        Mutation(paths, "clipped", "[-clip, clip]", "[-clip, 2 * clip]", d3po_form),
        Mutation(D3PO, "losses", "held[:, 0] - held[:, 1]", "held[:, 1] - held[:, 0]", d3po_form),
        Mutation(PRDP, "_residual", "- batch.gap", "+ batch.gap", prdp_optimum),
        Mutation(PRDP, "losses", "2 * self.beta", "self.beta", prdp_gradient),
        Mutation(PRDP, "_near", "before + (ratio", "(ratio", prdp_gradient),
        Mutation(DLPO, "losses", "- self.b *", "+ self.b *", dlpo_form),
        Mutation(dlpo, "denoising_loss", "-c.alpha / c.sigma", "c.alpha / c.sigma", dlpo_form),
        Mutation(RewardWeighted, "prepare", "/ self.beta", "* self.beta", regression),
        Mutation(candidate_file, "step_pairs", "s.argmax(1), s.argmin(1)", "s.argmin(1), s.argmax(1)", spo_pairs),
        Mutation(candidate_file, "candidates", "chosen.repeat_interleave(k)", "torch.arange(b * k)", spo_pairs),
        Mutation(models.Shared, "__call__", "repeat_interleave(self.copies, 0)", "repeat(self.copies, 1)", spo_once),
        Mutation(candidate_file, "judged", "Graded(temperature)", "Graded(1.0)", judge_optimum),
    ]
)  # fmt: skip
def test_mutations_are_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)


def low_baseline() -> None:
    """A policy that is worse than its reference on its data: the mean score is negative and z is 0."""
    tuned = policy(1.5, GRID)
    method = DiffusionKTO(weight=ConstantWeight(4.0))
    batch = collect(method, tuned, labels())
    g = errors_of(tuned, "reference", batch.draws[0], 0) - errors_of(tuned, "current", batch.draws[0], 0)
    assert float(g.mean()) < 0 and float(batch.draws[0].baseline[0]) == 0
