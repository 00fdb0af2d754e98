"""What preference losses converge to: population minima on a bandit by exact enumeration, against closed forms."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from girsanov.preferences import (
    LINKS,
    LOSSES,
    Compared,
    PairLoss,
    Score,
    games,
    imitation,
    labels,
    links,
    lists,
    make_loss,
    margins,
    pairs,
    pointwise,
    scores,
    selection,
)
from girsanov.preferences.games import equilibrium_gap, nash_md_step
from girsanov.preferences.links import Exo, Exponential, Hinge, Link, Logistic, Square, SquaredHinge
from girsanov.preferences.margins import ScoreGap
from girsanov.preferences.pointwise import LossAverse
from girsanov.preferences.selection import Accepted, Top
from tests.laws import bandit
from tests.laws.bandit import F64, LENGTH, REF, REWARD, UNIFORM, minimum, normalised, population, preference
from tests.laws.mutation import Mutation, check, mutants

BETA = 0.7
MEAN_WIN = preference().mean(1)  # with P(i > i) = 1/2


def tilted(value: Tensor, ref: Tensor = REF, beta: float = BETA) -> Tensor:
    """``pi_ref exp(value / beta) / Z``."""
    return (ref + value / beta).softmax(0)


def divergent(inverse: object, most: float) -> Tensor:
    """``pi = pi_ref u``, ``u = (f')^{-1}(g)``, ``g = (r + c) / beta`` below ``most``."""
    high = BETA * most - float(REWARD.max()) - 1e-9
    return normalised(lambda c: REF.exp() * inverse((REWARD + c) / BETA), -60.0, high)


def js_inverse(g: Tensor) -> Tensor:
    return g.exp() / (2 - g.exp())


def alpha_inverse(g: Tensor) -> Tensor:
    return (1 - 0.5 * g) ** -2.0


def per_length() -> Tensor:
    """``log pi / |y| = r / beta + c``."""
    return normalised(lambda c: (LENGTH * (REWARD / BETA + c)).exp(), -40.0, 0.0)


ONE = torch.ones((), dtype=F64)
TILTS = {  # name -> (settings, what the batch holds besides, the minimum)
    **{
        name: ({"beta": BETA}, {}, tilted(REWARD))
        for name in ("dpo", "oaif", "iterative-dpo", "spin", "rso", "expo", "tr-dpo", "tr-dpo-hard", "sdpo")
    },
    "ipo": ({"beta": BETA}, {}, tilted(MEAN_WIN)),
    "gpo": ({"beta": BETA}, {}, tilted(2 * MEAN_WIN)),
    "exponential": ({"beta": BETA}, {}, tilted(REWARD / 2)),
    "r-dpo": ({"beta": BETA, "alpha": 0.2}, {"length": LENGTH}, tilted(REWARD - 0.2 * LENGTH)),
    "mallows-dpo": ({"beta": BETA}, {"dispersion": 1.7 * ONE}, tilted(REWARD / 1.7)),
    "optune": ({"beta": BETA}, {"score": REWARD}, tilted(REWARD)),
    "lipo": ({"beta": BETA}, {"score": REWARD}, tilted(REWARD)),
    "rank-dpo": ({"beta": BETA}, {"score": REWARD}, tilted(REWARD)),
    "plackett-luce": ({"score": Score(BETA)}, {}, tilted(REWARD)),
    "dense-dpo": (
        {"beta": BETA},
        {"length": LENGTH},
        normalised(lambda c: (REF + LENGTH * (REWARD / BETA + c)).exp(), -40.0, 5.0),
    ),
    "f-dpo-forward-kl": ({"beta": BETA}, {}, divergent(lambda g: -1 / g, 0.0)),
    "f-dpo-alpha": ({"beta": BETA}, {}, divergent(alpha_inverse, 2.0)),
    "f-dpo-js": ({"beta": BETA}, {}, divergent(js_inverse, math.log(2))),
    "simpo": ({"beta": BETA, "gamma": 0.0}, {"length": LENGTH}, per_length()),
    "rainbow-po": (
        {"beta": BETA, "alpha": 0.4, "gamma": 0.0, "length": 1.0},
        {"length": LENGTH, "dispersion": 1.3 * ONE},
        normalised(lambda c: (0.4 * REF + LENGTH * (REWARD / (1.3 * BETA) + c)).exp(), -40.0, 5.0),
    ),
    "aot": ({"beta": BETA}, {}, None),  # sorts the batch: no population minimum of single pairs
}


def optimum_of(name: str) -> None:
    settings, more, wanted = TILTS[name]
    found = minimum(make_loss(name, **settings), bandit.pairs(**more))
    torch.testing.assert_close(found, wanted, atol=2e-7, rtol=0)


@pytest.mark.parametrize("name", [n for n, case in TILTS.items() if case[2] is not None])
def test_the_minimum_is_the_closed_form(name: str) -> None:
    optimum_of(name)


def test_the_values_of_the_three_armed_bandit() -> None:
    """Uniform reference, beta = 1/2, r = (0, 1, 2): the published check values, to six digits."""
    dpo = minimum(make_loss("dpo", beta=0.5), bandit.pairs(UNIFORM))
    torch.testing.assert_close(dpo, torch.tensor([0.015876, 0.117310, 0.866813], dtype=F64), atol=1e-6, rtol=0)
    ipo = minimum(make_loss("ipo", beta=0.5), bandit.pairs(UNIFORM))
    torch.testing.assert_close(ipo, torch.tensor([0.209878, 0.315586, 0.474535], dtype=F64), atol=1e-6, rtol=0)


def test_offsets_by_a_score_add_to_the_reward() -> None:
    """ODPO with the identity as its function: the optimum has the reward ``r + alpha score``."""
    loss = PairLoss(score=Score(BETA), margins=(ScoreGap(0.4),))
    score = torch.tensor([0.3, -1.0, 0.8], dtype=F64)
    torch.testing.assert_close(
        minimum(loss, bandit.pairs(score=score)), tilted(REWARD + 0.4 * score), atol=2e-7, rtol=0
    )


def robust() -> None:
    """With labels flipped at rate e, rDPO(e) ends where DPO on clean labels does; cDPO(e) does not."""
    noisy = bandit.pairs(flip=0.2)
    clean = tilted(REWARD)
    torch.testing.assert_close(minimum(make_loss("rdpo", beta=BETA, eps=0.2), noisy), clean, atol=2e-7, rtol=0)
    assert float((minimum(make_loss("dpo", beta=BETA), noisy) - clean).abs().max()) > 0.05


def test_debiased_labels_undo_the_noise() -> None:
    robust()


def smoothed() -> None:
    """Two arms: cDPO's best logit is ``logit(e + (1 - 2e) P)``."""
    ref, wins = torch.tensor([0.6, 0.4], dtype=F64).log(), torch.tensor([[0.5, 0.8], [0.2, 0.5]], dtype=F64)
    found = minimum(make_loss("cdpo", beta=BETA, eps=0.15), bandit.pairs(ref, wins), arms=2)
    h = BETA * ((found.log() - ref)[0] - (found.log() - ref)[1])
    assert float(h) == pytest.approx(math.log(0.71 / 0.29), abs=1e-6)


def test_smoothed_labels_model_the_noise() -> None:
    smoothed()


BEST = {  # link -> its best logit for P = P(w beats l)
    "logistic": (Logistic(), lambda p: math.log(p / (1 - p))),
    "square": (Square(0.8), lambda p: 0.8 * (2 * p - 1)),
    "squared-hinge": (SquaredHinge(1.3), lambda p: 1.3 * (2 * p - 1)),
    "exponential": (Exponential(), lambda p: math.log(p / (1 - p)) / 2),
    "exo": (Exo(0.05), lambda p: (2 * p - 1) * math.log(0.95 / 0.05)),
    "hinge": (Hinge(1.2), lambda p: 1.2 if p > 0.5 else -1.2),
}


def best_logit(name: str) -> None:
    link, answer = BEST[name]
    h = torch.linspace(-4, 4, 8001, dtype=F64)
    for p in (0.3, 0.6, 0.9):
        found = float(h[(p * link(h) + (1 - p) * link(-h)).argmin()])
        assert found == pytest.approx(answer(p), abs=1e-3)


@pytest.mark.parametrize("name", LINKS)
def test_every_link_has_its_best_logit(name: str) -> None:
    best_logit(name)


@pytest.mark.parametrize(
    ("link", "first", "second"),
    [(Logistic(), -0.5, 0.25), (Square(1.0), -2.0, 2.0), (Hinge(1.0), -1.0, 0.0), (Exponential(), -1.0, 1.0)]
    + [(Exo(0.1), -math.log(9) / 4, 0.25), (SquaredHinge(0.5), -1.0, 2.0)],
)
def test_the_taylor_coefficients_at_0(link: Link, first: float, second: float) -> None:
    h = torch.zeros((), dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(link(h), h, create_graph=True)
    curve = torch.autograd.grad(slope, h)[0] if slope.requires_grad else torch.zeros(())
    assert (float(slope.detach()), float(curve)) == (pytest.approx(first), pytest.approx(second))


def test_ipo_is_finite_where_preferences_are_certain_and_dpo_is_not() -> None:
    """One pair, always the same winner: IPO ends at ``D_w - D_l = 1 / (2 beta)``, DPO's gradient never vanishes."""
    ref = torch.tensor([0.5, 0.5], dtype=F64).log()
    sure = bandit.pairs(ref, torch.tensor([[0.5, 1.0], [0.0, 0.5]], dtype=F64))
    found = minimum(make_loss("ipo", beta=BETA), sure, arms=2).log()
    assert float(found[0] - found[1]) == pytest.approx(1 / (2 * BETA), abs=1e-7)
    for wide in (5.0, 50.0):
        theta = torch.tensor([wide, 0.0], dtype=F64, requires_grad=True)
        (slope,) = torch.autograd.grad(population(make_loss("dpo", beta=BETA), sure, theta.log_softmax(0)), theta)
        assert float(slope[0]) < 0


# ---- lists


def plackett_luce() -> None:
    """All rankings of three arms with their Plackett-Luce probabilities."""
    rows = list(itertools.permutations(range(3)))
    weight = torch.stack([sum(REWARD[list(r)][k] - REWARD[list(r)][k:].logsumexp(0) for k in range(3)) for r in rows])
    found = minimum(make_loss("plackett-luce", score=Score(BETA)), bandit.lists(REF, rows, weight.exp()))
    torch.testing.assert_close(found, tilted(REWARD), atol=2e-7, rtol=0)


def test_rankings_of_a_reward_give_its_tilt() -> None:
    plackett_luce()


def graded(name: str) -> None:
    """InfoNCA and EXO on the whole support: ``pi ~ pi_ref exp(score / (T beta))``."""
    loss = make_loss(name, score=Score(BETA), temperature=1.6)
    found = minimum(loss, bandit.lists(REF, [(0, 1, 2)], torch.ones(1, dtype=F64), score=REWARD))
    torch.testing.assert_close(found, tilted(REWARD / 1.6), atol=2e-7, rtol=0)


@pytest.mark.parametrize("name", ["infonca", "exo-list"])
def test_graded_lists_give_the_tilt_of_the_grades(name: str) -> None:
    graded(name)


def nca() -> None:
    """Uniform reference, beta = 1: ``s = log(K p)`` can be met, and the policy is p itself."""
    loss = make_loss("nca", score=Score(1.0), temperature=0.8)
    found = minimum(loss, bandit.lists(UNIFORM, [(2, 0, 1)], torch.ones(1, dtype=F64), score=REWARD))
    torch.testing.assert_close(found, (REWARD / 0.8).softmax(0), atol=2e-7, rtol=0)


def test_nca_meets_its_absolute_targets() -> None:
    nca()


# ---- single items


def labelled(good: Tensor, ref: Tensor = REF, **more: Tensor) -> bandit.Batch:
    """Every arm as often as the reference draws it, good with probability ``good`` [3]."""
    n = len(ref)
    index = torch.arange(n).repeat(2).unsqueeze(1)
    sign = torch.ones(2 * n, 1, dtype=F64)
    sign[n:] = -1
    weight = torch.cat([ref.exp() * good, ref.exp() * (1 - good)])
    return lambda log_pi: (Compared(log_pi[index], ref[index], sign=sign, **more), weight)


def classifier() -> None:
    """BCO with the baseline at which its targets are a policy: ``beta D = z + logit P(good)``."""
    good = torch.tensor([0.2, 0.5, 0.9], dtype=F64)
    z = -BETA * (REF + torch.logit(good) / BETA).logsumexp(0)
    found = minimum(make_loss("bco", beta=BETA), labelled(good, baseline=z))
    torch.testing.assert_close(found, tilted(torch.logit(good)), atol=2e-7, rtol=0)


def test_bco_is_a_classifier() -> None:
    classifier()


def kto_value(pi: Tensor, good: Tensor, z: float) -> Tensor:
    """``sum_y ref(y) [-(p_y sigma(beta D - z) + q_y sigma(z - beta D))]``, written out; pi [N, 3]."""
    v = BETA * (pi.log() - REF)
    return -(REF.exp() * (good * torch.sigmoid(v - z) + (1 - good) * torch.sigmoid(z - v))).sum(-1)


def test_kto_against_a_search_of_the_simplex() -> None:
    """No closed form: the minimum over a grid that is refined three times, and it is neither DPO's nor IPO's."""
    good, z = torch.tensor([0.3, 0.55, 0.8], dtype=F64), torch.tensor(0.1, dtype=F64)
    centre, span = torch.tensor([0.5, 0.25, 0.25], dtype=F64), 0.5
    for steps in (240, 160, 160, 160):
        a = torch.linspace(-span, span, steps + 1, dtype=F64)
        p, q = (centre[k] + a for k in (0, 1))
        grid = torch.stack([x.flatten() for x in torch.meshgrid(p, q, indexing="ij")], 1)
        grid = torch.cat([grid, 1 - grid.sum(1, keepdim=True)], 1)
        grid = grid[(grid > 1e-9).all(1)]
        centre, span = grid[kto_value(grid, good, float(z)).argmin()], 4 * span / steps
    found = min(
        (minimum(make_loss("kto", beta=BETA), labelled(good, baseline=z), start=s) for s in torch.eye(3, dtype=F64)),
        key=lambda pi: float(kto_value(pi, good, float(z))),
    )
    assert float(kto_value(found, good, float(z))) <= float(kto_value(centre, good, float(z))) + 1e-12
    torch.testing.assert_close(found, centre, atol=2e-4, rtol=0)
    for other in (tilted(REWARD), tilted(MEAN_WIN)):
        assert float((found - other).abs().max()) > 0.02


def test_utilities_of_small_values_are_linear() -> None:
    """To first order all utilities are ``U(0) + U'(0) v``."""
    v = torch.tensor([-1e-5, 1e-5], dtype=F64)
    for name, (start, slope) in {"sigmoid": (0.5, 0.25), "loss-averse": (-math.log(2), 0.5)}.items():
        got = pointwise.UTILITIES[name]()(v)
        torch.testing.assert_close(got, start + slope * v, atol=1e-10, rtol=0)
    risk = pointwise.UTILITIES["risk-seeking"]()(v)
    torch.testing.assert_close(risk, math.log(2) + 0.5 * v, atol=1e-10, rtol=0)
    torch.testing.assert_close(risk, -LossAverse()(-v))


# ---- imitation


def imitated(name: str, wanted: Tensor, **settings: float) -> None:
    """All draws of three items from the reference, selected, then the minimum of the loss."""
    rows = list(itertools.product(range(3), repeat=3))
    chance = torch.stack([REF[list(r)].sum().exp() for r in rows])
    loss = make_loss(name, **settings)
    drawn = bandit.lists(REF, rows, chance, score=REWARD)

    def batch(log_pi: Tensor) -> tuple[Compared, Tensor]:
        items, weight = drawn(log_pi)
        kl = (REF.exp() * (REF - log_pi)).sum().expand_as(items.logp)
        return loss.items(Compared(items.logp, score=items.score, divergence=kl)), weight

    torch.testing.assert_close(minimum(loss, batch), wanted, atol=2e-7, rtol=0)


CDF = REF.exp().cumsum(0)
BEST_OF_3 = CDF**3 - (CDF - REF.exp()) ** 3


def best_of_three() -> None:
    imitated("best-of-n", BEST_OF_3)


def test_the_best_of_n_is_imitated() -> None:
    best_of_three()
    imitated("raft", BEST_OF_3)


def superhf() -> None:
    imitated("superhf", (BEST_OF_3 + 0.5 * REF.exp()) / 1.5, weight=0.5)


def test_superhf_mixes_the_best_with_the_reference() -> None:
    superhf()


def rest() -> None:
    """``pi_ref`` given ``r >= 1/2``: the minimum lies at the edge of the simplex, found to 1e-4."""
    loss, rows = make_loss("rest", tau=0.5), list(itertools.product(range(3), repeat=3))
    chance = torch.stack([REF[list(r)].sum().exp() for r in rows])
    drawn, kept = bandit.lists(REF, rows, chance, score=REWARD), REF.exp() * (REWARD >= 0.5)
    found = minimum(loss, lambda log_pi: (loss.items(drawn(log_pi)[0]), chance))
    torch.testing.assert_close(found, kept / kept.sum(), atol=1e-4, rtol=0)


def test_rest_is_the_reference_above_its_threshold() -> None:
    rest()


def accepted() -> None:
    """RSO: 3000 prompts of 40 draws, seed 0: accepted arms have the tilted law, z below 4.5 for every arm."""
    g = torch.Generator().manual_seed(0)
    arms = torch.multinomial(REF.exp(), 3000 * 40, replacement=True, generator=g).view(3000, 40)
    u = torch.rand(3000, 40, dtype=F64, generator=g)
    batch = Compared(arms.to(F64), score=REWARD[arms])
    kept = Accepted(BETA)(batch, u)
    counts = torch.bincount(kept.logp[kept.there].long(), minlength=3).double()
    want = tilted(REWARD)
    error = (want * (1 - want) / counts.sum()).sqrt()
    assert float(((counts / counts.sum() - want) / error).abs().max()) < 4.5
    assert bool((kept.score.masked_fill(~kept.there, -9).diff(dim=1) <= 0).all())


def test_rejection_sampling_gives_the_tilted_law() -> None:
    accepted()


# ---- games

CYCLE = torch.tensor([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]], dtype=F64)


def nash_md() -> None:
    """Rock-paper-scissors: uniform for a uniform reference; for another the game's equilibrium with the step
    ``2 / (beta (t + 2))``, at the rate 1 / T; a constant step ends beside it."""
    start = torch.tensor([1.0, 0.0, -1.0], dtype=F64).log_softmax(0)
    log_pi = start
    for _ in range(600):
        log_pi = nash_md_step(log_pi, UNIFORM, CYCLE, eta=0.2, beta=0.5)
    torch.testing.assert_close(log_pi, UNIFORM, atol=1e-9, rtol=0)
    gaps, log_pi, held = {}, start, start
    for t in range(3200):
        log_pi = nash_md_step(log_pi, REF, CYCLE, eta=2 / (0.5 * (t + 2)), beta=0.5)
        held = nash_md_step(held, REF, CYCLE, eta=0.2, beta=0.5)
        gaps[t + 1] = float(equilibrium_gap(log_pi, REF, CYCLE, 0.5))
    assert gaps[3200] < 2e-3 and gaps[400] / gaps[3200] == pytest.approx(8, rel=0.3)
    assert float(equilibrium_gap(held, REF, CYCLE, 0.5)) > 10 * gaps[3200]


def test_nash_md_converges_on_a_cycle() -> None:
    nash_md()


def test_dpo_has_no_gradient_at_uniform_on_a_cycle() -> None:
    theta = torch.zeros(3, dtype=F64, requires_grad=True)
    value = population(make_loss("dpo"), bandit.pairs(UNIFORM, CYCLE), theta.log_softmax(0))
    assert float(torch.autograd.grad(value, theta)[0].abs().max()) < 1e-16


def nash_gradient() -> None:
    """The mean gradient of Nash-MD-PG over draws of the policy is that of ``P(pi > pi') - beta KL(pi || mu)``."""
    theta = torch.tensor([0.4, -0.3, 0.1], dtype=F64, requires_grad=True)
    log_pi = theta.log_softmax(0)
    rival = games.geometric_mixture(log_pi.detach(), REF, 0.25).exp()
    items = Compared(log_pi.unsqueeze(1), REF.unsqueeze(1), wins=(CYCLE @ rival).unsqueeze(1))
    value = (make_loss("nash-md-pg", beta=0.3).rows(items) * log_pi.detach().exp()).sum()
    (seen,) = torch.autograd.grad(value, theta, retain_graph=True)
    pi = log_pi.exp()
    (want,) = torch.autograd.grad(pi @ CYCLE @ rival - 0.3 * (pi * (log_pi - REF)).sum(), theta)
    torch.testing.assert_close(seen, -want, atol=1e-14, rtol=0)


def test_nash_md_pg_has_the_gradient_of_the_game() -> None:
    nash_gradient()


def sppo() -> None:
    """To first order in eta the multiplicative-weights step, on normalised policies; a pair's targets are +-eta / 2."""
    wins = CYCLE @ REF.exp()

    def single(log_pi: Tensor) -> tuple[Compared, Tensor]:
        return Compared(log_pi.unsqueeze(1), REF.unsqueeze(1), wins=wins.unsqueeze(1)), REF.exp()

    for eta, error in ((0.01, 1e-7), (0.1, 1e-6)):
        found = minimum(make_loss("sppo", eta=eta), single)
        step = (REF + eta * wins).softmax(0)
        assert float((found - step).abs().max()) < error
        assert float((found - REF.exp()).abs().max()) > 100 * error
    pair = Compared(torch.tensor([[5.0, -5.0]], dtype=F64), torch.zeros(1, 2, dtype=F64))
    assert float(make_loss("sppo", eta=10.0)(pair)) == 0.0


def test_sppo_is_a_step_of_multiplicative_weights() -> None:
    sppo()


def test_stages_of_a_copied_reference_add_up() -> None:
    """sDPO: three stages of DPO, each from the last, end at ``pi_ref exp(3 r / beta)``."""
    ref = REF
    for _ in range(3):
        ref = minimum(make_loss("sdpo", beta=2.0), bandit.pairs(ref)).log()
    torch.testing.assert_close(ref.exp(), tilted(3 * REWARD, beta=2.0), atol=1e-6, rtol=0)


# ---- what the laws do not cover


NO_MINIMUM = {
    "hinge": "a certain gap, see the links",
    "squared-hinge": "see the links",
    "cdpo": "tested on two arms",
    "rdpo": "tested on noisy labels",
    "odpo": "the logarithm of a gap is no difference",
    "cpo": "two terms",
    "orpo": "two terms",
    "slic": "two terms",
    "rrhf": "two terms",
    "pro": "two terms",
    "dpop": "depends on the side of the reference",
    "tdpo1": "needs tokens",
    "tdpo2": "needs tokens",
    "exo": "see the links",
    "aot": "sorts the batch",
    "aot-unpaired": "sorts the batch",
    "povid": "three items",
    "diffusion-kto": "KTO with another baseline",
}


def test_every_loss_has_a_minimum_here_or_a_reason() -> None:
    tested = {n for n, case in TILTS.items() if case[2] is not None}
    tested |= {"infonca", "exo-list", "nca", "bco", "kto", "best-of-n", "raft", "rest", "superhf", "sppo", "nash-md-pg"}
    assert tested | set(NO_MINIMUM) == set(LOSSES) and not tested & set(NO_MINIMUM)


def optimum(name: str) -> object:
    return lambda: optimum_of(name)


@mutants(
    [
        Mutation(pairs.PairLoss, "logits", "gap - margin", "gap + margin", optimum("r-dpo")),
        Mutation(pairs.PairLoss, "logits", "* gap", "+ gap", optimum("mallows-dpo")),
        Mutation(margins.LengthGap, "__call__", "-self.alpha", "self.alpha", optimum("r-dpo")),
        Mutation(scores.Score, "log_ratio", "- self.reference", "+ self.reference", optimum("dpo")),
        Mutation(scores.Score, "__call__", "self.beta *", "2 * self.beta *", optimum("dpo")),
        Mutation(scores.Score, "log_ratio", "** self.length", "** 0", optimum("simpo")),
        Mutation(scores.ForwardKL, "__call__", "(-d", "(-2 * d", optimum("f-dpo-forward-kl")),
        Mutation(scores.Alpha, "__call__", "/ self.alpha", "", optimum("f-dpo-alpha")),
        Mutation(scores.JensenShannon, "__call__", "logsigmoid(d)", "d", optimum("f-dpo-js")),
        Mutation(links.Square, "__call__", "h - self.target", "h - 2 * self.target", optimum("ipo")),
        Mutation(links.Exponential, "__call__", "(-h.clamp", "(-2 * h.clamp", lambda: best_logit("exponential")),
        Mutation(links.Exo, "__call__", "logsigmoid(-h) - wrong", "logsigmoid(-h) - right", lambda: best_logit("exo")),
        Mutation(links.SquaredHinge, "__call__", "self.delta - h", "1 - h", lambda: best_logit("squared-hinge")),
        Mutation(labels.Debiased, "__call__", "- self.eps * link(-h)", "+ self.eps * link(-h)", robust),
        Mutation(labels.Smoothed, "__call__", "self.eps * link(-h)", "self.eps * link(h)", smoothed),
        Mutation(lists.PlackettLuce, "rows", ".flip(1).logcumsumexp(1).flip(1)", ".logcumsumexp(1)", plackett_luce),
        Mutation(lists.ExoList, "rows", "log_q - log_p", "log_q + log_p", lambda: graded("exo-list")),
        Mutation(lists, "grades", "/ temperature", "* temperature", lambda: graded("infonca")),
        Mutation(lists.NCA, "rows", "share * logsigmoid", "logsigmoid", nca),
        Mutation(pointwise.PointLoss, "rows", "s - z", "s + z", classifier),
        Mutation(imitation.ImitationLoss, "rows", "term(batch)", "2 * term(batch)", superhf),
        Mutation(selection, "_sorted", "descending=True", "descending=False", best_of_three),
        Mutation(Accepted, "__call__", "/ self.beta", "", accepted),
        Mutation(selection.Above, "__call__", ">=", "<", rest),
        Mutation(Top, "__call__", "self.n", "2 * self.n", best_of_three),
        Mutation(games, "nash_md_step", "eta * wins", "wins", nash_md),
        Mutation(games.NashMDPG, "rows", "- self.beta", "+ self.beta", nash_gradient),
        Mutation(games.SPPO, "rows", "- 0.5", "", sppo),
    ]
)
def test_mutations_are_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)
