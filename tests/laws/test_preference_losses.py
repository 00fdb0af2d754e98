"""Laws of preference losses: values, limits between members, invariances, gradients, extremes; over the whole dict."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from girsanov.preferences import (
    LOSSES,
    Compared,
    PairLoss,
    Score,
    completion,
    dispersion,
    extrapolate,
    make_loss,
    margins,
    pairs,
    pointwise,
    records,
    sequence_kl,
    terms,
    weights,
)
from girsanov.preferences import lists as list_losses
from girsanov.preferences.base import Loss
from girsanov.preferences.links import Exo, Hinge, Logistic
from girsanov.preferences.margins import LogScoreGap, ScoreGap
from girsanov.preferences.moves import Copied, Fixed, Soft, Staged
from girsanov.preferences.pairs import ManyNegatives
from girsanov.preferences.pointwise import Linear, LossAverse, Midpoint
from girsanov.preferences.scores import Alpha, ForwardKL, ReverseKL
from girsanov.preferences.selection import BestAndWorst, Judged, Ranked, lowest
from tests.laws.mutation import Mutation, check, mutants

F64 = torch.float64
BETA = 0.3
BIG = {"povid"}
"""Losses of three items."""
PLAIN = ("dpo", "oaif", "iterative-dpo", "spin", "rso", "expo", "tr-dpo", "tr-dpo-hard", "sdpo")
"""Points whose loss is DPO's: they differ in what is compared, where the reference goes, or what is used at the end."""


def batch(items: int = 2, rows: int = 6, seed: int = 0, scale: float = 1.0) -> Compared:
    """Random items with every field; scores in order."""
    g = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(rows, items, generator=g, dtype=F64)

    logp, ref = -6 + scale * draw(), -6 + scale * draw()
    return Compared(
        logp.clamp(max=-0.1),
        ref.clamp(max=-0.1),
        length=torch.randint(2, 9, (rows, items), generator=g).to(F64),
        score=draw().sort(1, descending=True).values,
        wins=torch.rand(rows, items, generator=g, dtype=F64),
        divergence=draw().abs(),
        dispersion=torch.rand(rows, generator=g, dtype=F64) + 0.5,
        mismatched=draw() + 0.5,
    )


def of(name: str) -> Compared:
    return batch(3 if name in BIG else 2)


def at_reference(name: str) -> Compared:
    b = of(name)
    return dataclasses.replace(b, logp=b.ref, mismatched=torch.zeros(2, dtype=F64), divergence=0 * b.logp)


def h_of(b: Compared, beta: float = BETA) -> Tensor:
    d = b.logp - b.ref
    return beta * (d[:, 0] - d[:, 1])


def same(a: Loss, b: Loss, on: Compared, tol: float = 1e-12) -> None:
    torch.testing.assert_close(a.rows(on), b.rows(on), atol=tol, rtol=tol)


# ---- values


@pytest.mark.parametrize("name", [*PLAIN, "cdpo", "mallows-dpo", "tdpo1", "tdpo2", "dpop", "aot", "povid", "f-dpo-js"])
def test_sigmoid_losses_cost_log_2_at_the_reference(name: str) -> None:
    torch.testing.assert_close(make_loss(name)(at_reference(name)), torch.tensor(math.log(2), dtype=F64))


def test_offsets_of_0_cost_log_2_and_kto_minus_1_at_the_reference() -> None:
    b = at_reference("dpo")
    zero = PairLoss(margins=(ScoreGap(0.0),))
    assert float(zero(b)) == pytest.approx(math.log(2), rel=1e-15)
    assert float(make_loss("kto")(b)) == pytest.approx(-1.0, rel=1e-15)


def written_out() -> None:
    """Published formulas, written out for pairs: (name, settings) -> rows."""
    b = batch()
    (w, l), (rw, rl) = b.logp.unbind(1), b.ref.unbind(1)
    nw, nl = b.length.unbind(1)
    rho_w, rho_l = w - rw, l - rl
    h = BETA * (rho_w - rho_l)
    gap = b.score[:, 0] - b.score[:, 1]
    kw, kl = b.divergence.unbind(1)
    pw, pl = (w / nw).exp(), (l / nl).exp()
    odds = torch.log(pw / (1 - pw)) - torch.log(pl / (1 - pl))
    z = BETA * b.mismatched.mean().clamp_min(0)
    ls = logsigmoid
    phi = b.dispersion
    forms = [
        ("dpo", {"beta": BETA}, -ls(h)),
        ("ipo", {"beta": BETA}, (h - 0.5) ** 2),
        ("hinge", {"beta": BETA, "delta": 1.2}, (1.2 - h).clamp_min(0)),
        ("cdpo", {"beta": BETA, "eps": 0.2}, -0.8 * ls(h) - 0.2 * ls(-h)),
        ("rdpo", {"beta": BETA, "eps": 0.2}, (-0.8 * ls(h) + 0.2 * ls(-h)) / 0.6),
        ("r-dpo", {"beta": BETA, "alpha": 0.1}, -ls(h + 0.1 * (nw - nl))),
        ("odpo", {"beta": BETA, "alpha": 0.4}, -ls(h - 0.4 * gap.log())),
        ("mallows-dpo", {"beta": BETA}, -ls(phi * h)),
        ("cpo", {"beta": BETA}, -ls(BETA * (w - l)) - w),
        ("orpo", {"lam": 0.3}, -w / nw - 0.3 * ls(odds)),
        ("simpo", {"beta": 2.0, "gamma": 0.7}, -ls(2.0 * (w / nw - l / nl) - 0.7)),
        ("slic", {"delta": 1.5, "weight": 0.2}, (1.5 - w + l).clamp_min(0) - 0.2 * w),
        ("dpop", {"beta": BETA, "lam": 3.0}, -ls(h - BETA * 3.0 * (rw - w).clamp_min(0))),
        ("tdpo1", {"beta": BETA}, -ls(h - BETA * (kl - kw))),
        ("tdpo2", {"beta": BETA, "alpha": 0.4}, -ls(h - 0.4 * BETA * (kl - kw))),
        ("exo", {"beta": BETA, "eps": 0.1}, exo(h, 0.1)),
        ("kto", {"beta": BETA}, -torch.sigmoid(BETA * rho_w - z) - torch.sigmoid(z - BETA * rho_l)),
        ("rrhf", {}, (l / nl - w / nw).clamp_min(0) - w),
        ("pro", {"weight": 0.05}, -ls(gap * (w / nw - l / nl)) - 0.05 * w / nw),
        ("optune", {"beta": BETA, "temperature": 0.5}, -torch.tanh(gap) * ls(h)),
        ("sppo", {"eta": 2.0}, ((torch.stack([rho_w, rho_l], 1) - 2.0 * (b.wins - 0.5)) ** 2).sum(1)),
        ("dense-dpo", {"beta": BETA}, -ls(BETA * (rho_w / nw - rho_l / nl))),
    ]
    for name, settings, want in forms:
        torch.testing.assert_close(make_loss(name, **settings).rows(b), want, msg=lambda m, n=name: f"{n}: {m}")


def exo(h: Tensor, eps: float) -> Tensor:
    q = torch.sigmoid(h)
    return q * (q / (1 - eps)).log() + (1 - q) * ((1 - q) / eps).log()


def test_the_published_formulas_written_out() -> None:
    written_out()


def test_r_dpo_reduces_the_gradient_weight_of_longer_winners() -> None:
    """At the same log-probs: the weight ``sigma(-h)`` of a pair falls with the length of its winner."""
    logp = torch.zeros(2, 2, dtype=F64, requires_grad=True)
    b = Compared(logp, torch.zeros(2, 2, dtype=F64), length=torch.tensor([[9.0, 3.0], [3.0, 9.0]]))
    (slope,) = torch.autograd.grad(make_loss("r-dpo", beta=BETA, alpha=0.1).rows(b).sum(), logp)
    longer, shorter = -slope[:, 0]
    assert float(longer) < BETA / 2 < float(shorter)


# ---- limits between members


def equal_limits() -> None:
    """Pairs of points that coincide: (one, other, batch, tolerance)."""
    b, dpo = batch(), make_loss("dpo", beta=BETA)
    three, unit = batch(3), dataclasses.replace(batch(), dispersion=torch.ones(6, dtype=F64))
    one = b.take(torch.tensor([0]))
    free = PairLoss(score=Score(BETA, reference=0.0))
    graded = dataclasses.replace(b, score=torch.tensor([[math.log(9.0), 0.0]], dtype=F64).expand(6, 2))
    bare = dataclasses.replace(b, score=None)
    for name in ("cdpo", "rdpo"):
        same(make_loss(name, beta=BETA, eps=0.0), dpo, b)
    for name, settings in (("r-dpo", {"alpha": 0.0}), ("odpo", {"alpha": 0.0}), ("dpop", {"lam": 0.0})):
        same(make_loss(name, beta=BETA, **settings), dpo, b)
    same(make_loss("tdpo2", beta=BETA, alpha=0.0), dpo, b)
    same(make_loss("tdpo2", beta=BETA, alpha=1.0), make_loss("tdpo1", beta=BETA), b)
    same(make_loss("mallows-dpo", beta=BETA), dpo, unit)
    same(make_loss("rainbow-po", beta=BETA, alpha=1.0, length=0.0), make_loss("mallows-dpo", beta=BETA), b)
    same(make_loss("rainbow-po", beta=2.0, alpha=0.0, gamma=0.7), make_loss("simpo", beta=2.0, gamma=0.7), unit)
    same(make_loss("cpo", beta=BETA, weight=0.0), free, b)
    same(PairLoss(score=Score(BETA, shape=ReverseKL())), dpo, b)
    same(make_loss("f-dpo-alpha", beta=BETA, alpha=1.0), make_loss("f-dpo-forward-kl", beta=BETA), b)
    same(make_loss("f-dpo-alpha", beta=BETA, alpha=1e-7), dpo, b, 1e-5)
    same(make_loss("plackett-luce", score=Score(BETA)), dpo, b)
    same(make_loss("infonca", score=Score(BETA)), dpo, bare, 1e-10)
    same(make_loss("exo-list", score=Score(BETA)), make_loss("exo", beta=BETA, eps=0.1), graded)
    same(make_loss("aot", beta=BETA), dpo, one)
    same(make_loss("aot-unpaired", beta=BETA), dpo, one)
    same(ManyNegatives(score=Score(BETA), negatives=(1.0,)), dpo, b)
    same(make_loss("kto", beta=BETA, utility=LossAverse(), baseline=Midpoint()), make_loss("bco", beta=BETA), b)
    same(make_loss("optune", beta=BETA, temperature=1e-6), dpo, b)
    same(make_loss("gpo", beta=BETA, link=Hinge(1.0)), make_loss("hinge", beta=BETA), b)
    same(make_loss("oaif", beta=BETA, link=Hinge(1.0)), make_loss("hinge", beta=BETA), b)
    for name in PLAIN:
        same(make_loss(name, beta=BETA), dpo, b)
    # Several items: all pairs of DPO are not Plackett-Luce, but the best against one other is a pair.
    alone = dataclasses.replace(three, valid=torch.tensor([True, False, True]).expand(6, 3))
    pair = three.columns(torch.tensor([0, 2]).expand(6, 2))
    for name in ("plackett-luce", "infonca", "exo-list", "nca"):
        torch.testing.assert_close(
            make_loss(name, score=Score(BETA)).rows(alone), make_loss(name, score=Score(BETA)).rows(pair)
        )
    for name in ("dpo", "pro", "rrhf", "kto", "sppo", "nash-md-pg"):
        torch.testing.assert_close(make_loss(name).rows(alone), make_loss(name).rows(pair))
    torch.testing.assert_close(make_loss("dpo").rows(three), _three_pairs(three))
    assert float((make_loss("plackett-luce").rows(three) - make_loss("dpo").rows(three)).abs().min()) > 0.1


def _three_pairs(b: Compared) -> Tensor:
    index = [(0, 1), (0, 2), (1, 2)]
    return sum(make_loss("dpo").rows(b.columns(torch.tensor(ij).expand(len(b), 2))) for ij in index)


def test_members_meet_in_their_limits() -> None:
    equal_limits()


def nca_pair() -> None:
    b = dataclasses.replace(batch(), score=None)
    s = BETA * (b.logp - b.ref)
    want = -logsigmoid(s[:, 0]) - 0.5 * (logsigmoid(-s[:, 0]) + logsigmoid(-s[:, 1]))
    torch.testing.assert_close(make_loss("nca", score=Score(BETA)).rows(b), want, atol=1e-9, rtol=1e-9)


def test_nca_of_a_pair_is_the_published_form() -> None:
    nca_pair()


def pro_of_three() -> None:
    """The published temperatures, by division."""
    b = batch(3)
    s, r = b.logp / b.length, b.score
    want = torch.zeros(6, dtype=F64)
    for k in (0, 1):
        t = [1 / (r[:, k] - r[:, i]) for i in range(k + 1, 3)]
        t = [torch.stack(t).amin(0), *t]
        terms_ = torch.stack([s[:, k + i] / t[i] for i in range(len(t))])
        want = want + terms_.logsumexp(0) - terms_[0]
    torch.testing.assert_close(make_loss("pro", weight=0.0).rows(b), want)


def test_pro_has_the_published_temperatures() -> None:
    pro_of_three()


def rank_weights() -> None:
    """Three items, scores (2, 1, 0): gains 3, 1, 0; discounts 1 / log(1 + rank)."""
    b = dataclasses.replace(batch(3), score=torch.tensor([[2.0, 1.0, 0.0]], dtype=F64).expand(6, 3))
    d = [1 / math.log(2), 1 / math.log(3), 1 / math.log(4)]
    h = BETA * (b.logp - b.ref)
    w = {(0, 1): 2 * (d[0] - d[1]), (0, 2): 3 * (d[0] - d[2]), (1, 2): 1 * (d[1] - d[2])}
    want = sum(-v * logsigmoid(h[:, i] - h[:, j]) for (i, j), v in w.items())
    torch.testing.assert_close(make_loss("rank-dpo", beta=BETA).rows(b), want)
    place = (-h).argsort(1).argsort(1)
    seen = torch.tensor(d, dtype=F64)[place]
    gain = {(0, 1): 2, (0, 2): 3, (1, 2): 1}
    want = sum(-v * (seen[:, i] - seen[:, j]).abs() * logsigmoid(h[:, i] - h[:, j]) for (i, j), v in gain.items())
    torch.testing.assert_close(make_loss("lipo", beta=BETA).rows(b), want)


def test_rank_and_lambda_weights() -> None:
    rank_weights()


def povid_signs() -> None:
    """Both negatives are pushed down, and the logit is the weighted difference."""
    b = batch(3)
    logp = b.logp.clone().requires_grad_(True)
    loss = make_loss("povid", beta=BETA, positive=1.0, text=0.7, image=0.3).rows(dataclasses.replace(b, logp=logp))
    (slope,) = torch.autograd.grad(loss.sum(), logp)
    assert bool((slope[:, 0] < 0).all()) and bool((slope[:, 1:] > 0).all())
    s = BETA * (b.logp - b.ref)
    torch.testing.assert_close(loss.detach(), -logsigmoid(s[:, 0] - 0.7 * s[:, 1] - 0.3 * s[:, 2]))


def test_povid_pushes_both_negatives_down() -> None:
    povid_signs()


def aot_sorts() -> None:
    """The sorted columns, written out; a permutation of the losers alone changes nothing in the unpaired form."""
    b = batch()
    gap, base = (x[:, 0] - x[:, 1] for x in (b.logp, b.ref))
    want = -logsigmoid(BETA * (gap.sort().values - base.sort().values))
    torch.testing.assert_close(make_loss("aot", beta=BETA).rows(b), want)
    assert abs(float(make_loss("aot", beta=BETA)(b) - make_loss("dpo", beta=BETA)(b))) > 1e-3
    mixed = torch.tensor([3, 0, 5, 1, 4, 2])
    logp, ref = (torch.stack([x[:, 0], x[mixed, 1]], 1) for x in (b.logp, b.ref))
    loss = make_loss("aot-unpaired", beta=BETA)
    assert float(loss(Compared(logp, ref))) == pytest.approx(float(loss(b)), rel=1e-14)


def test_aot_compares_laws_not_pairs() -> None:
    aot_sorts()


def tdpo_gradients() -> None:
    """TDPO 2's winner KL has no gradient, TDPO 1's has; the values agree."""
    b = batch()
    k = b.divergence.clone().requires_grad_(True)
    with_k = dataclasses.replace(b, divergence=k)
    slopes = {}
    for name, settings in (("tdpo1", {}), ("tdpo2", {"alpha": 1.0})):
        (slopes[name],) = torch.autograd.grad(make_loss(name, beta=BETA, **settings).rows(with_k).sum(), k)
    assert bool((slopes["tdpo2"][:, 0] == 0).all()) and bool((slopes["tdpo1"][:, 0] < 0).all())
    torch.testing.assert_close(slopes["tdpo1"][:, 1], slopes["tdpo2"][:, 1])
    torch.testing.assert_close(slopes["tdpo1"][:, 0], -slopes["tdpo1"][:, 1])


def test_the_sequence_kl_of_tdpo() -> None:
    tdpo_gradients()


# ---- invariances

REFERENCE_FREE = ("cpo", "orpo", "simpo", "slic", "rrhf", "pro", "best-of-n", "raft", "rest")
SHIFTED = (*PLAIN, "ipo", "gpo", "hinge", "squared-hinge", "exponential", "cdpo", "rdpo", "r-dpo", "odpo")
SHIFTED += (
    "mallows-dpo",
    "tdpo1",
    "tdpo2",
    "exo",
    "optune",
    "lipo",
    "rank-dpo",
    "plackett-luce",
    "infonca",
    "exo-list",
)


@pytest.mark.parametrize("name", LOSSES)
def test_what_the_reference_does(name: str) -> None:
    """Reference-free losses ignore it, all others move with it; both log-probs shifted alike change no log-ratio."""
    b, loss = of(name), make_loss(name)
    moved = dataclasses.replace(b, ref=b.ref + torch.linspace(-1, 1, b.ref.numel(), dtype=F64).view_as(b.ref))
    change = float((loss.rows(moved) - loss.rows(b)).abs().max())
    free = name in REFERENCE_FREE or name == "superhf"  # its KL comes with the batch
    assert (change == 0) if free else (change > 1e-6)
    if free or name == "nash-md-pg" or name == "rainbow-po":  # the latter two read the log-prob itself too
        return
    shift = torch.linspace(-2, 2, b.logp.numel(), dtype=F64).view_as(b.logp)
    torch.testing.assert_close(loss.rows(dataclasses.replace(b, logp=b.logp + shift, ref=b.ref + shift)), loss.rows(b))


@pytest.mark.parametrize("name", SHIFTED)
def test_a_constant_of_the_prompt_cancels(name: str) -> None:
    """All items of a prompt one unit more likely (the partition function of the prompt): the same loss."""
    b, loss = of(name), make_loss(name)
    shift = torch.linspace(-1, 1, len(b), dtype=F64).unsqueeze(1)
    torch.testing.assert_close(loss.rows(dataclasses.replace(b, logp=b.logp + shift)), loss.rows(b))


@pytest.mark.parametrize("name", [n for n in SHIFTED if n not in ("gpo", "ipo", "exponential")])
def test_swapping_a_pair_flips_its_logit(name: str) -> None:
    """``f(h)`` and ``f(-h)``: for the logistic link they differ by h."""
    loss = make_loss(name)
    if not isinstance(loss, PairLoss):
        return
    b = dataclasses.replace(of(name), score=None) if name not in ("odpo", "optune", "lipo", "rank-dpo") else of(name)
    swapped = b.columns(torch.tensor([1, 0]).expand(len(b), 2))
    one, other = (loss.logits(loss.pairing(x)) for x in (b, swapped))
    if name == "odpo":  # the log of a gap is not odd: the identity is
        loss = dataclasses.replace(loss, margins=(ScoreGap(1.0),))
        one, other = (loss.logits(loss.pairing(x)) for x in (b, swapped))
    torch.testing.assert_close(one, -other)


@pytest.mark.parametrize("name", ["infonca", "exo-list", "nca", "sppo", "nash-md-pg"])
def test_graded_lists_have_no_order(name: str) -> None:
    b, loss = batch(4), make_loss(name)
    order = torch.tensor([2, 0, 3, 1]).expand(6, 4)
    torch.testing.assert_close(loss.rows(b.columns(order)), loss.rows(b))


# ---- gradients and arithmetic

STOPPED = ("nash-md-pg", "tdpo2")
"""Losses that hold something constant on purpose; their gradients have tests of their own."""


def gradients(name: str) -> None:
    b, loss = of(name), make_loss(name)
    b = dataclasses.replace(b, baseline=torch.tensor(0.1, dtype=F64))

    def value(logp: Tensor, divergence: Tensor) -> Tensor:
        return loss.rows(dataclasses.replace(b, logp=logp, divergence=divergence))

    inputs = (b.logp.clone().requires_grad_(True), b.divergence.clone().requires_grad_(True))
    assert torch.autograd.gradcheck(value, inputs, eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in STOPPED])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    gradients(name)


def cast(b: Compared, dtype: torch.dtype, scale: float = 1.0) -> Compared:
    parts = {f.name: getattr(b, f.name) for f in dataclasses.fields(b)}
    return Compared(**{k: v if v is None else (v * (scale if k == "logp" else 1)).to(dtype) for k, v in parts.items()})


@pytest.mark.parametrize("name", LOSSES)
def test_float32_under_autocast_and_from_half_precision(name: str) -> None:
    """Half-precision log-probs are read as float32; autocast changes no bit; float32 is float64 to 1e-5."""
    loss, exact = make_loss(name), make_loss(name).rows(of(name))
    single = cast(of(name), torch.float32)
    plain = loss.rows(single)
    assert plain.dtype == torch.float32
    torch.testing.assert_close(plain.double(), exact, atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss.rows(single), plain)
    assert loss.rows(cast(of(name), torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("scale", [1e3, 1e5])
@pytest.mark.parametrize("name", LOSSES)
def test_extreme_log_probs_stay_finite(name: str, scale: float) -> None:
    """Log-probs of -1e6 and of 0, float32: loss and gradient are finite."""
    b = cast(of(name), torch.float32, scale)
    logp = b.logp.clone()
    logp[::2, 0], logp[1::2, 1] = 0.0, 0.0
    logp.requires_grad_(True)
    value = make_loss(name)(dataclasses.replace(b, logp=logp))
    (slope,) = torch.autograd.grad(value, logp)
    assert bool(value.isfinite()) and bool(slope.isfinite().all())


# ---- parts beside the losses


def test_dense_log_probs_weigh_corrected_segments() -> None:
    """RLHF-V's Eq. 2 by hand; gamma = 1 is the sum; padding may be -inf."""
    tokens = torch.tensor([[-1.0, -2.0, -4.0, -torch.inf]], dtype=F64)
    mask, changed = torch.tensor([[True, True, True, False]]), torch.tensor([[False, True, False, False]])
    logp, length = completion(tokens, mask, changed, gamma=5.0)
    assert (float(logp), float(length)) == (-1.0 - 4.0 - 5 * 2.0, 2 + 5.0)
    assert [float(x) for x in completion(tokens, mask)] == [-7.0, 3.0]


def test_the_sequence_kl_is_that_of_its_positions() -> None:
    g = torch.Generator().manual_seed(0)
    p, q = (torch.randn(2, 3, 5, generator=g, dtype=F64).log_softmax(-1) for _ in range(2))
    mask = torch.tensor([[True, True, False], [True, True, True]])
    kl = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(sequence_kl(q, p, mask), (kl * mask).sum(1))


def test_dispersion_is_0_for_uniform_and_large_for_certain_answers() -> None:
    h = torch.tensor([math.log(50.0), math.log(50.0) / math.e, 1e-9], dtype=F64)
    phi = dispersion(h, 50)
    assert float(phi[0]) == pytest.approx(0, abs=1e-12) and float(phi[1]) == pytest.approx(1) and float(phi[2]) > 10


def test_references_move_on_schedule() -> None:
    policy = {"w": torch.full((2,), 1.0)}
    for moves, want in (
        (Fixed(), [0, 0, 0, 0]),
        (Soft(0.5), [0.5, 0.75, 0.875, 0.9375]),
        (Soft(0.5, every=2), [0, 0.5, 0.5, 0.75]),
        (Copied(3), [0, 0, 1, 1]),
        (Staged((2,)), [0, 1, 1, 1]),
    ):
        reference = {"w": torch.zeros(2)}
        seen = []
        for update in range(1, 5):
            moves.move(reference, policy, update)
            seen.append(float(reference["w"][0]))
        assert seen == want
    named = {"tr-dpo": Soft, "tr-dpo-hard": Copied, "sdpo": Staged, "iterative-dpo": Copied, "dpo": Fixed}
    assert all(type(make_loss(n).moves) is kind for n, kind in named.items())


def test_extrapolated_weights_are_a_strength_above_1() -> None:
    """ExPO's weights, and the model of a policy at ``strength = 1 + alpha``, agree."""
    from girsanov.models import Model
    from girsanov.policy import Policy
    from girsanov.processes import RectifiedFlow

    class Net(torch.nn.Linear):
        def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
            return super().forward(x)

    torch.manual_seed(0)
    policy = Policy(Model(Net(3, 3).double(), RectifiedFlow(), "velocity", (3,)))
    start = {k: v.clone() for k, v in policy.state().items()}
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.3)
    loss, x, t = make_loss("expo", alpha=0.4), torch.randn(2, 3, dtype=F64), torch.full((2,), 0.5, dtype=F64)
    assert loss.strength == 1.4
    made = extrapolate(policy.state(), start, 0.4)
    want = torch.func.functional_call(policy.net, made, (x, t))
    torch.testing.assert_close(policy.view("current", strength=loss.strength)(x, t), want)
    assert make_loss("dpo").strength == 1.0


def test_selections_keep_what_they_say() -> None:
    b = Compared(
        torch.arange(8, dtype=F64).view(2, 4), score=torch.tensor([[0.0, 3.0, 1.0, 3.0], [1.0, 1.0, 1.0, 1.0]])
    )
    assert Ranked()(b).logp.tolist() == [[1, 3, 2, 0], [4, 5, 6, 7]]
    pair = BestAndWorst()(b)
    assert pair.logp[0].tolist() == [1, 0] and pair.there.tolist() == [[True, True], [False, False]]
    assert float(make_loss("dpo").rows(dataclasses.replace(pair, ref=pair.logp))[1]) == 0.0  # a tie teaches nothing
    two = Compared(torch.tensor([[1.0, 2.0]] * 2), wins=torch.tensor([[0.7, 0.3]] * 2))
    assert Judged()(two, torch.tensor([[0.69, 0.0], [0.71, 0.0]])).logp.tolist() == [[1, 2], [2, 1]]
    assert lowest(torch.tensor([3.0, 1.0, 2.0, 0.0]), 0.5).tolist() == [3, 1]


def test_baselines_hold_no_graph_and_are_what_they_say() -> None:
    b = batch()
    s = Score(BETA)(b)
    want = {
        "zero": 0.0,
        "mismatched-kl": BETA * float(b.mismatched.mean()),
        "batch-mean": max(0.0, float(s.mean())),
        "midpoint": float((s[:, 0].mean() + s[:, 1].mean()) / 2),
    }
    for name, cls in pointwise.BASELINES.items():
        logp = b.logp.clone().requires_grad_(True)
        now = dataclasses.replace(b, logp=logp)
        z = cls()(now, Score(BETA)(now), BETA)
        assert float(z) == pytest.approx(want[name]) and not z.requires_grad
        fixed = dataclasses.replace(now, baseline=torch.tensor(0.37))
        assert float(cls()(fixed, Score(BETA)(fixed), BETA)) == pytest.approx(0.37)
    low = dataclasses.replace(b, mismatched=-torch.ones(3, dtype=F64))
    assert float(pointwise.MismatchedKL()(low, s, BETA)) == 0.0
    assert float(pointwise.running(torch.tensor(1.0), torch.tensor(3.0), 0.75)) == 1.5
    linear = make_loss("kto", beta=BETA, utility=Linear()).rows(b)
    torch.testing.assert_close(linear, -(s[:, 0] - s[:, 1]))  # the baseline cancels in a pair


@mutants(
    [
        Mutation(margins.ChosenDrop, "__call__", "(-pairing.s", "(pairing.s", written_out),
        Mutation(margins.SequenceKL, "__call__", "worse - better", "better - worse", written_out),
        Mutation(margins.LoserKL, "__call__", ".detach()", "", tdpo_gradients),
        Mutation(margins.LoserKL, "__call__", "pairing.beta *", "", written_out),
        Mutation(LogScoreGap, "__call__", ".log()", "", written_out),
        Mutation(margins.Fixed, "__call__", "self.gamma", "-self.gamma", written_out),
        Mutation(terms.Imitation, "__call__", "-self.weight", "self.weight", written_out),
        Mutation(terms.Imitation, "__call__", "logp / batch", "logp * batch", written_out),
        Mutation(weights.GapWeight, "__call__", "(2 * self", "(self", written_out),
        Mutation(weights.Uniform, "__call__", "self.value", "1.0", written_out),
        Mutation(weights.RankWeight, "__call__", "arange(1,", "arange(0,", rank_weights),
        Mutation(weights.LambdaWeight, "__call__", "descending=True", "descending=False", rank_weights),
        Mutation(weights, "_gain_gap", "2.0 **", "3.0 **", rank_weights),
        Mutation(Hinge, "__call__", "self.delta - h", "self.delta + h", written_out),
        Mutation(Logistic, "__call__", "(h)", "(2 * h)", written_out),
        Mutation(Exo, "__call__", "- wrong", "- right", written_out),
        Mutation(ForwardKL, "__call__", "min=-LIMIT", "min=0", equal_limits),
        Mutation(Alpha, "__call__", "/ self.alpha", "", equal_limits),
        Mutation(pairs.ManyNegatives, "rows", "h - b", "h + b", povid_signs),
        Mutation(pairs.SortedGaps, "rows", "gap.sort().values", "gap", aot_sorts),
        Mutation(pairs.SortedScores, "rows", ".sort(0).values", "", aot_sorts),
        Mutation(pointwise.MismatchedKL, "estimate", "beta *", "", written_out),
        Mutation(pointwise.PointLoss, "rows", "sign * (s - z)", "sign * s - z", written_out),
        Mutation(list_losses.PRO, "rows", "amax", "amin", pro_of_three),
        Mutation(list_losses.NCA, "rows", "logsigmoid(-s)", "logsigmoid(s)", nca_pair),
        Mutation(records.Compared, "columns", "v.gather(1, index)", "v", equal_limits),
    ]
)
def test_mutations_are_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)
